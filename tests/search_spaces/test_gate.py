import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from search_spaces.errors import InputError, masked
from search_spaces.gate import MAX_YAML_BYTES, Gate, check_database, inside, is_plain_name


class OwnError(InputError):
    pass


GATE = Gate("own.file", OwnError, "write it anew")


@dataclass(frozen=True)
class Inner:
    size: int

    def __post_init__(self) -> None:
        if not self.size:
            raise ValueError("nothing")


@dataclass(frozen=True)
class Outer:
    name: str
    share: float | None = None
    parts: tuple[Inner, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    inner: Inner | None = None


def test_a_record_is_read_by_its_fields() -> None:
    data = {"name": "a", "share": 1, "parts": [{"size": 2}], "counts": {"b": 3}, "inner": None, "newer": 4}
    assert GATE.record("it", Outer, data) == Outer("a", 1.0, (Inner(2),), {"b": 3})
    assert GATE.record("it", Outer, {"name": "a", "inner": {"size": 5}}) == Outer("a", inner=Inner(5))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": None}, "it: name is missing"),
        ({"share": "1"}, "share must be a number"),
        ({"share": 1e13}, "share must be a number from -1e\\+12"),
        ({"parts": {}}, "parts: expected a list"),
        ({"parts": [{"size": 0}]}, "is damaged: ValueError: nothing"),
        ({"counts": {"b": 1.5}}, "b must be a whole number"),
        ({"inner": {}}, "inner: size is missing"),
    ],
)
def test_a_record_of_other_values_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(OwnError, match=f"own.file .*{reason}"):
        GATE.record("it", Outer, {"name": "a", **change})


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("3:", "holds an integer|is not valid YAML|key that is no short text"),
        ("!!int x", "is not valid YAML"),
        ("!!python/object/apply:os.system [id]", "is not valid YAML"),
        ("a: !!binary aGFsbG8=", "holds a bytes"),
        ("a: 2001-01-01", "holds a date"),
        ("a: .nan", "holds nan"),
        ("a: .inf", "holds inf"),
        ("a: 0x" + "f" * 30, "more than 64 bits"),
        ("a: 0x" + "f" * 20_000, "more than 64 bits"),
        ("a: " + "9" * 5_000, "not valid YAML"),
        ("[" * 5_000, "nest"),
        ("[" * 40 + "]" * 40, "nested more than 32"),
        ("&a [*a]", "contains itself"),
        (ALIASES, "holds more than 100,000 values"),
        ("a: " + "x" * 20_000, "a text of 20,000 characters"),
        ("x" * (MAX_YAML_BYTES + 1), "too large"),
        ("{1: 2}", "key that is no short text: 1"),
        ("a: b: c", "is not valid YAML"),
    ],
)
def test_yaml_that_is_none_or_too_much_ends_in_one_short_line(text: str, reason: str) -> None:
    start = time.process_time()
    with pytest.raises(OwnError, match=reason) as caught:
        GATE.yaml(text)
    assert time.process_time() - start < 2
    message = str(caught.value)
    assert message.startswith("own.file ")
    assert message.endswith("; write it anew")
    assert len(message) <= 300
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[" * 100_000, "nested more than 32"),
        ("[" * 40 + "]" * 40, "nested more than 32"),
        ("NaN", "holds NaN"),
        ("[1e999]", "holds inf"),
        ("[-Infinity]", "holds -Infinity"),
        ("1" * 5_000, "is no JSON"),
        ("1" * 40, "more than 64 bits"),
    ],
)
def test_json_that_is_none_or_too_much_ends_in_one_short_line(text: str, reason: str) -> None:
    with pytest.raises(OwnError, match=reason) as caught:
        GATE.json(text)
    assert len(str(caught.value)) <= 300


def test_plain_values_pass() -> None:
    assert GATE.json('{"a": [1, -2.5, true, null, "b"]}') == {"a": [1, -2.5, True, None, "b"]}
    assert GATE.yaml("a: [1, -2.5, true, null, b]\nc: &x {d: e}\nf: *x") == {
        "a": [1, -2.5, True, None, "b"],
        "c": {"d": "e"},
        "f": {"d": "e"},
    }


def test_what_is_no_small_text_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 101)
    (tmp_path / "latin1").write_bytes("Übung\nStraße".encode("latin-1"))
    for name, reason in (
        ("missing", "No such file"),
        (".", "it is no file|Is a directory"),
        ("pipe", "it is no file"),
        ("latin1", "no UTF-8 text: byte 0xdc in line 1"),
        ("large", "too large"),
        ("zero\0byte", "zero byte"),
    ):
        with pytest.raises(OwnError, match=reason):
            GATE.text(tmp_path / name, most=100)
    (tmp_path / "mark").write_bytes("\ufeffÜ".encode())
    assert GATE.text(tmp_path / "mark") == "Ü"


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/b", "", ".", "..", ".hidden", "-o", "a b", "x;y", "a" * 101]
)
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    assert not is_plain_name(name)
    with pytest.raises(InputError):
        inside(tmp_path, name)


def test_links_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link.yaml").symlink_to(tmp_path / "target.yaml")
    with pytest.raises(InputError):
        inside(tmp_path / "folder", "link.yaml")
    assert inside(tmp_path / "folder", "own.yaml") == tmp_path / "folder" / "own.yaml"


def test_messages_are_one_short_printable_line() -> None:
    message = str(InputError("bad \x1b[31m value\n" + "x" * 5_000 + "\nrun: python -m nas.profile"))
    assert len(message) <= 300
    assert message.startswith(r"bad \x1b[31m value xxx")
    assert message.endswith("run: python -m nas.profile")
    assert message.isprintable()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@host/db",
        "postgresql+psycopg://me:sec:secret@host:5432/db?sslmode=require",
        "postgresql://me:p@secret@host/db",
        "postgresql://:secret@host/db",
        "postgresql://host/db?user=me&password=secret",
        "study.storage=postgresql://me:secret@host/db search.trials=3",
        "postgresql://me:my secret@host/db",
        "postgresql:/me:secret@host/db",
        "'postgresql:me:secret@host/db'",
        "postgresql://host:secret/db",
        "postgresql://host:secret",
        "mysql://host/db?pwd=secret&x=1",
        "postgresql://host/db?pass%77ord=secret",
        "postgresql://host/db?user=me;SSLPASSWORD=secret",
        "mssql+pyodbc://host/?odbc_connect=UID%3Dme%3BPWD%3Dsecret",
        "host=host password=secret dbname=db",
    ],
)
def test_passwords_are_masked_in_every_message(url: str) -> None:
    message = str(InputError(f"the study storage {url} does not answer"))
    assert "secret" not in message
    assert "***" in message
    assert "host" in message


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://host:5432/db hardware.host=pi@board",
        "postgresql://me@host:5432/db?passfile=/home/me/.pgpass",
        "10:30:12@noon and C:/a:b sqlite:///C:/x.db",
        "see https://a.example/b: it says me@host",
    ],
)
def test_what_is_no_password_stays(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    ("url", "fits"),
    [
        ("postgresql://me@host/db", True),
        ("postgresql+psycopg://me:a%40b@[::1]:5432/db?sslmode=require", True),
        ("postgresql:///db?host=/tmp/x", True),
        ("sqlite:////tmp/my studies.db", True),
        ("sqlite://", False),  # in memory: lost with its process
        ("postgresql://me:my secret@host/db", False),
        ("postgresql://me:sec@ret@host/db", False),  # "ret" would be the host, and said
        ("postgresql://me:secret", False),  # "secret" would be the port, and said
        ("postgresql:/me:secret@host/db", False),
        ("host=host password=secret", False),
    ],
)
def test_a_database_is_known_by_its_url(url: str, fits: bool) -> None:
    with nullcontext() if fits else pytest.raises(InputError, match=r"study.storage (is|names) no") as caught:
        check_database("study.storage", url)
    assert caught is None or "sec" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: a\nname: b", "has the key 'name' twice"),
        ("x: [{a: 1, b: {}, a: 2}]", "has the key 'a' twice"),
        # With older PyYAMLs nine such lines are gigabytes.
        ("a: &a {k: 1}\nb: {<<: [*a, *a]}", "merges mappings by <<"),
    ],
)
def test_mappings_of_a_yaml_are_what_they_look_like(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Gate("x.yaml").yaml(text)
    assert Gate("x.yaml").yaml("[{a: a, b: {a: [a, a]}}, {a: a}]") == [
        {"a": "a", "b": {"a": ["a", "a"]}},
        {"a": "a"},
    ]


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\udfff": 1}'])
def test_half_a_character_is_refused(text: str) -> None:
    # No page nor file could hold it: the traceback came when it was written.
    with pytest.raises(InputError, match=r"half a character|no short text"):
        Gate("x.json").json(text)
    assert Gate("x.json").json('"\\ud83d\\ude00"') == "\U0001f600"
