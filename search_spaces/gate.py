"""The gate for files that others wrote: bounded in size and depth, plain values, one line when refused.

    gate = Gate("table.json", TableError, remedy="measure again with: ...")
    header = gate.mapping(gate.json(gate.text(path)))
    threads = gate.integer("threads", header.get("threads"), 1, 1024)

A file can be cut short, mutated, or made to hurt. Behind the gate there are only mappings with texts as
keys, lists, texts of bounded length, integers of 64 bits, finite numbers, booleans and null; whatever else
a file holds ends in the error that the reader was given, with the file's name and a short reason.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import stat
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import cache
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeAlias, TypeVar, cast, get_args, get_origin

import yaml
from yaml.events import Event

from search_spaces.errors import InputError, is_text, shorten

# What a file holds once it is behind the gate.
Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
JsonObject: TypeAlias = dict[str, Json]

_T = TypeVar("_T")

MEGABYTE = 1_000_000
# Larger than anything the project writes of that kind.
MAX_FILE_BYTES = 64 * MEGABYTE
MAX_STREAM_BYTES = 4_000 * MEGABYTE
# PyYAML reads some hundred kilobytes a second; an architecture of a hundred rows has fifteen.
MAX_YAML_BYTES = 100_000
# Some hundred megabytes of Python objects, in the worst case, and a second to look at all of them.
MAX_JSON_BYTES = 8 * MEGABYTE
MAX_DEPTH = 32
MAX_VALUES = 1_000_000
MAX_YAML_VALUES = 100_000
MAX_TEXT = 10_000
# Names become file names, titles and parts of commands.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_HOST = re.compile(r"[A-Za-z0-9_\[][^\s;&|<>$`'\"()\\]*")
# Scheme; user and password; host or address; port; database and query.
_DATABASE = re.compile(
    r"[A-Za-z][\w+.-]*://(?:[^\s:@/]*(?::[^\s@]*)?@)?(?:\[[\w:.%]*\]|[^\s:@/?\[\]]*)(?::\d{1,5})?(?:[/?]\S*)?"
)
_SQLITE = re.compile(r"sqlite(?:\+\w+)?:///[^?\n]+(?:\?\S*)?", re.IGNORECASE)
# A name in the net has 253 at most; a user stands before it.
_LONGEST_HOST = 300
_LARGEST_INTEGER = 2**63
# More than anything that records hold, few enough digits to be printed.
_LARGEST_QUANTITY = 1e12


def is_plain_name(name: object) -> bool:
    """True if a text can be the name of a file in a folder: letters, digits, ``. _ + -``, 100 at most."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and ".." not in name


def is_label(text: str) -> bool:
    """True if a text can name a network and its files: printable, without slashes, 100 characters at most."""
    return text.isprintable() and "/" not in text and text not in ("", ".", "..") and len(text) <= 100


def check_name(name: str) -> None:
    """Refuse a name of hardware that would be a path, an option or a piece of a command.

    Raises:
        InputError: naming the setting.
    """
    if not is_plain_name(name):
        raise InputError(
            f"hardware.name must begin with a letter or digit and hold only letters, digits and . _ + -, "
            f"at most 100, not {name!r}"
        )


def is_host(text: str) -> bool:
    """True if ssh takes a text for a host, and neither ssh nor a shell takes it for anything else."""
    plain = text.isprintable() and len(text) <= _LONGEST_HOST
    return plain and bool(_HOST.fullmatch(text)) and not re.search(r"[@/]-", text)


def check_database(setting: str, url: str) -> None:
    """Refuse what is no database's URL, also one whose parts are told apart wrongly: it may hold a password.

    Raises:
        InputError: naming the setting, and nothing of what it was given.
    """
    if url.lower().startswith("sqlite"):
        if _SQLITE.fullmatch(url) and ":memory:" not in url:
            return
        raise InputError(f"{setting} names no file of a database: write e.g. sqlite:///study.db")
    if not _DATABASE.fullmatch(url):
        raise InputError(
            f"{setting} is no URL of a database: write e.g. postgresql://user@host/database (in names and "
            "passwords a space is %20, an @ is %40)"
        )


def inside(folder: Path, name: str) -> Path:
    """The path of a file named by somebody else, in a folder and nowhere else.

    Raises:
        InputError: if the name is no plain one, or leads out of the folder through a link.
    """
    path = folder / name
    if not is_plain_name(name) or path.resolve().parent != folder.resolve():
        raise InputError(f"{name!r} is no name of a file in {folder}")
    return path


def made(cls: Callable[..., _T], fields: Mapping[str, object]) -> _T:
    """An object of a class that checks its own fields, of fields by name as a file has them."""
    return cls(**fields)


@cache
def _parameters_of(kind: Hashable) -> Mapping[str, Parameter]:
    assert callable(kind)
    return signature(kind, eval_str=True).parameters


@dataclass(frozen=True, slots=True)
class Gate:
    """Reads one source and refuses what does not belong into it.

    Attributes:
        name: of the source, begins every message.
        error: what is raised.
        remedy: what to do, ends every message; may be empty.
    """

    name: str
    error: type[InputError] = InputError
    remedy: str = ""

    def fail(self, reason: object) -> NoReturn:
        """Refuse the source.

        Raises:
            InputError: of the gate's kind.
        """
        remedy = f"; {self.remedy}" if self.remedy else ""
        raise self.error(f"{self.name} {shorten(str(reason), 200)}{remedy}") from None

    def unreadable(self, reason: object) -> NoReturn:
        """Say that there is nothing to be read.

        Raises:
            InputError: of the gate's kind.
        """
        remedy = f"; {self.remedy}" if self.remedy else ""
        raise self.error(f"cannot read {self.name}: {shorten(str(reason), 200)}{remedy}") from None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what goes wrong with values of a wrong kind, also further down, into the gate's error."""
        try:
            yield
        except self.error:
            raise
        except InputError as error:
            self.fail(f"is damaged: {error}")
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            self.fail(f"is damaged: {type(error).__name__}: {error}")

    # -- files ---------------------------------------------------------------------------------

    def content(self, path: Path, most: int = MAX_FILE_BYTES) -> bytes:
        """The content of an ordinary file."""
        with self.opened(path, most) as file:
            return file.read(most)

    @contextmanager
    def opened(self, path: Path, most: int = MAX_STREAM_BYTES) -> Iterator[BinaryIO]:
        """An ordinary file, to be read piece by piece."""
        try:
            # Opened without waiting: a pipe without a writer would keep us for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            self.unreadable(error.strerror)
        except ValueError:
            self.unreadable("its name holds a zero byte")
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                self.unreadable("it is no file")
            if status.st_size > most:
                self.fail(f"is too large: {status.st_size / MEGABYTE:,.1f} MB, at most {most / MEGABYTE:g}")
            with open(descriptor, "rb", MEGABYTE, closefd=False) as file:
                yield file
        except OSError as error:
            self.unreadable(error.strerror)
        finally:
            os.close(descriptor)

    def text(self, path: Path, most: int = MAX_FILE_BYTES) -> str:
        """The text of an ordinary UTF-8 file."""
        return self.decoded(self.content(path, most))

    def decoded(self, content: bytes) -> str:
        """UTF-8 bytes as text, or UTF-16 where a byte order mark says so; the mark is dropped."""
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            try:
                return content.decode("utf-16")
            except UnicodeDecodeError:
                self.fail("begins like UTF-16 but is none: save it as UTF-8")
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            self.fail(f"is no UTF-8 text: byte {content[error.start]:#04x} in line {line}; save it as UTF-8")

    # -- formats -------------------------------------------------------------------------------

    def json(self, text: str) -> Json:
        """Plain values of a JSON text."""
        if len(text) > MAX_JSON_BYTES:
            self.fail(f"is too large: {len(text) / MEGABYTE:,.1f} MB in one piece")
        try:
            data = json.loads(text, parse_constant=self.no_number)
        except RecursionError:
            self.fail(f"is nested more than {MAX_DEPTH} deep")
        except ValueError as error:
            if isinstance(error, self.error):
                raise
            self.fail(f"is no JSON: {error}")
        return self.plain(data)

    def yaml(self, text: str) -> Json:
        """Plain values of a YAML text: no tags of programs, no bombs of aliases."""
        if len(text) > MAX_YAML_BYTES:
            self.fail(f"is too large for a YAML file of this kind: {len(text):,} characters")
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            self._check_events(yaml.parse(text, Loader=loader))
            data = yaml.load(text, Loader=loader)  # noqa: S506 - one of the two safe loaders
        except self.error:
            raise
        except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            # PyYAML's constructors let through what Python says of "3:" or "!!int x".
            reason = str(error).replace('"<unicode string>", ', "")
            self.fail(f"is not valid YAML: {reason}")
        return self.plain(data, MAX_YAML_VALUES)

    def _check_events(self, events: Iterable[Event]) -> None:
        """Look at the nesting of a YAML text and at the keys of its mappings, before anything is made."""
        # Of each collection around an event: the keys so far, None of a list; and whether a key comes next.
        around: list[set[str] | None] = []
        at_key: list[bool] = []
        for event in events:
            if isinstance(event, yaml.CollectionEndEvent):
                around.pop()
                at_key.pop()
                continue
            keys = around[-1] if around else None
            if keys is not None and isinstance(event, yaml.NodeEvent):
                if at_key[-1] and isinstance(event, yaml.ScalarEvent):
                    if event.value == "<<":
                        # Of older PyYAMLs these grow without bounds.
                        self.fail("merges mappings by <<, which is not known here: write them out")
                    if event.value in keys:
                        self.fail(f"has the key {_shown(event.value)} twice in one mapping")
                    keys.add(event.value)
                at_key[-1] = not at_key[-1]
            if isinstance(event, yaml.CollectionStartEvent):
                around.append(set() if isinstance(event, yaml.MappingStartEvent) else None)
                at_key.append(True)
                if len(around) > MAX_DEPTH:
                    self.fail(f"is nested more than {MAX_DEPTH} deep")

    def plain(self, data: object, most: int = MAX_VALUES, longest_text: int = MAX_TEXT) -> Json:
        """The same data, which holds nothing but bounded plain values.

        Args:
            data: of any kind.
            most: values that it may hold.
            longest_text: characters of a text.
        """
        left = most
        stack: list[tuple[Any, int]] = [(data, 0)]
        while stack:
            value, depth = stack.pop()
            left -= 1
            if left < 0:
                self.fail(f"holds more than {most:,} values")
            if depth > MAX_DEPTH:
                self.fail(f"is nested more than {MAX_DEPTH} deep, or contains itself")
            kind = type(value)
            if kind is float:
                if not math.isfinite(value):
                    self.fail(f"holds {value}, which is no number")
            elif kind is int:
                if not -_LARGEST_INTEGER <= value < _LARGEST_INTEGER:
                    self.fail("holds an integer of more than 64 bits")
            elif kind is str:
                if len(value) > longest_text:
                    self.fail(f"holds a text of {len(value):,} characters")
                if not (value.isascii() or is_text(value)):
                    self.fail(f"holds half a character: {_shown(value)}")
            elif kind is dict:
                for key in value:
                    if type(key) is not str or len(key) > MAX_TEXT or not (key.isascii() or is_text(key)):
                        self.fail(f"has a key that is no short text: {shorten(repr(key)[:80], 80)}")
                stack += [(each, depth + 1) for each in value.values()]
            elif kind is list:
                stack += [(each, depth + 1) for each in value]
            elif kind is not bool and value is not None:
                self.fail(f"holds a {kind.__name__}, which does not belong there")
        return cast(Json, data)

    def no_number(self, text: str) -> NoReturn:
        """Refuse NaN and infinity, for ``json.loads(..., parse_constant=...)``."""
        self.fail(f"holds {text}, which is no number")

    # -- values --------------------------------------------------------------------------------

    def mapping(self, data: object, what: str = "") -> JsonObject:
        """A mapping."""
        if not isinstance(data, dict):
            where = f"{what}: expected" if what else "must hold"
            self.fail(f"{where} a mapping, not {type(data).__name__}")
        return data

    def sequence(self, data: object, what: str = "", most: int = 1_000_000) -> list[Json]:
        """A list of bounded length.

        Args:
            data: as the file has it.
            what: what the list holds, for the message.
            most: length that is allowed.
        """
        if not isinstance(data, list):
            where = f"{what}: expected" if what else "must hold"
            self.fail(f"{where} a list, not {type(data).__name__}")
        if len(data) > most:
            self.fail(f"has {len(data):,} entries {what}, at most {most:,}")
        return data

    def number(self, what: str, value: object, low: float = -1e300, high: float = 1e300) -> float:
        """A finite number within bounds.

        Args:
            what: what the value is, for the message.
            value: as the file has it.
            low: least that is allowed.
            high: most that is allowed.
        """
        if not (type(value) is int or type(value) is float) or not low <= value <= high:
            self.fail(f"{what} must be a number from {low:g} to {high:g}, not {_shown(value)}")
        return float(value)

    def integer(self, what: str, value: object, low: int = 0, high: int = 2**53) -> int:
        """A whole number within bounds.

        Args:
            what: what the value is, for the message.
            value: as the file has it.
            low: least that is allowed.
            high: most that is allowed.
        """
        if type(value) is not int or not low <= value <= high:
            self.fail(f"{what} must be a whole number from {low} to {high}, not {_shown(value)}")
        return value

    def string(self, what: str, value: object, most: int = 1_000) -> str:
        """A text of bounded length.

        Args:
            what: what the value is, for the message.
            value: as the file has it.
            most: length that is allowed.
        """
        if type(value) is not str or len(value) > most:
            self.fail(f"{what} must be a text of at most {most} characters, not {_shown(value)}")
        return value

    def choice(self, what: str, value: object, choices: Sequence[str]) -> str:
        """One of some texts.

        Args:
            what: what the value is, for the message.
            value: as the file has it.
            choices: the texts.
        """
        if type(value) is not str or value not in choices:
            self.fail(f"{what} must be one of {', '.join(choices)}, not {_shown(value)}")
        return value

    def fields(
        self, what: str, data: object, required: Sequence[str], optional: Sequence[str] = ()
    ) -> JsonObject:
        """A mapping that has all required fields, and none that is not known.

        Args:
            what: what the value is, for the message.
            data: as the file has it.
            required: fields that must be there.
            optional: fields that may.
        """
        found = self.mapping(data, what)
        for name in required:
            if name not in found:
                self.fail(f"{what}: {name} is missing")
        for name in found:
            if name not in required and name not in optional:
                self.fail(f"{what}: unknown field {_shown(name)}")
        return found

    def record(self, what: str, kind: type[_T], data: object) -> _T:
        """A data class of plain values, of mappings and tuples of them, and of further data classes.

        What is unknown is left out, as of a newer version; what is missing or null keeps its default.

        Args:
            what: what the value is, for the message.
            kind: the data class; one with a ``from_dict`` reads itself.
            data: as the file has it.
        """
        found = self.mapping(data, what)
        values = {}
        for name, each in _parameters_of(cast(Hashable, kind)).items():
            if found.get(name) is not None:
                values[name] = self._typed(name, each.annotation, found[name])
            elif each.default is Parameter.empty:
                self.fail(f"{what}: {name} is missing")
        with self.reading():
            return kind(**values)

    def _typed(self, what: str, hint: object, value: Json) -> object:
        *inner, last = get_args(hint) or (hint,)
        if last is type(None):
            return self._typed(what, inner[0], value)
        if get_origin(hint) is tuple:
            return tuple(self._typed(what, inner[0], each) for each in self.sequence(value, what))
        if inner:
            return {name: self._typed(name, last, each) for name, each in self.mapping(value, what).items()}
        if hint is object:
            return value
        if isinstance(hint, type) and is_dataclass(hint):
            read: Callable[[object, Gate], object] | None = getattr(hint, "from_dict", None)
            return read(value, self) if read else self.record(what, hint, value)
        if hint is float:
            return self.number(what, value, -_LARGEST_QUANTITY, _LARGEST_QUANTITY)
        return self.string(what, value, MAX_TEXT) if hint is str else self.integer(what, value)


def _shown(value: object) -> str:
    return shorten(repr(value)[:200], 60)
