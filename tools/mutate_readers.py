"""Feed mutated files to every reader: each must end in a valid object or in one short error line.

    python -m tools.mutate_readers --inputs 100000 --seconds 600 --output results/mutations.json
    python -m tools.mutate_readers --reader card,networks --inputs 2000

Whole, small files of each kind are cut, spliced and changed: bytes, lines, and above all values, which become
numbers out of any bound, values of another kind, deep nesting and texts of other encodings; in JSON also such
as are valid and mean nonsense: references to what is not there, lists of 100,000, impossible dates. What ends
otherwise than in acceptance or in the project's own error (a traceback, more than two seconds, more than
500 MB, a long or broken message) is kept in ``--keep`` and counted.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import cast

import optuna
import torch

from nas.measuring.rounds import MeasurementError
from search_spaces.errors import MAX_MESSAGE, InputError
from tools.reader_cases import Reader, readers

LONGEST_S = 2.0
MOST_MEGABYTES = 500
_IDLE_S = 0.002
_VALUES = (
    b"-1",
    b"0",
    b"1",
    b"-0.0",
    b"1e999",
    b"-1e999",
    b"NaN",
    b"Infinity",
    b".nan",
    b".inf",
    b"9223372036854775808",
    b"16777216",
    b"1e308",
    b"1e-320",
    b"null",
    b"true",
    b"false",
    b"[]",
    b"{}",
    b'""',
    b'"x"',
    b"x",
    b"''",
    b"3:",
    b"!!int x",
    b"!!python/name:os.system",
    b"[1, 2]",
    b'{"a": 1}',
    b"../../x",
    b"/etc/passwd",
    b"0x1F",
    b"1_000",
    b"99999999999999999999999999",
    b"\xff\xfe",
    b"\x00",
    b"=1+1",
    b"<script>alert(1)</script>",
    b"\xe2\x80\xae",
    b"[" * 200,
    b"[" * 5_000,
    b"9" * 5_000,
    b"a" * 20_000,
    b"&a [*a]",
    b"2026-01-01",
    # The largest that are allowed somewhere, and one more.
    b"31",
    b"8192",
    b"65536",
    b"65537",
    b"1000000",
    b"10000000",
)
# What is valid JSON and means something else than what stands there.
_MEANINGS: tuple[object, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, 1e-12, 65_536, 1_000_000, 10**7, 2**31, 2**53, 1e12, -1e12, 1e300),
    *("", "0", "0123456789", "proxy", "measured", "../../x", "a/b", ".", "x" * 300, "\x1b]0;x\x07", "=1+1"),
    *(
        "1970-01-01T00:00:00",
        "9999-12-31T23:59:59.999999",
        "0001-01-01T00:00:00+23:59",
        "2026-13-45T99:00:00",
    ),
    *([], {}, [[]], [None], {"": None}),
)
_MOST_COPIES = 100_000
_VALUE = re.compile(rb'-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|"[^"\n]*"|\b[A-Za-z_]\w*\b')


class TookTooLongError(BaseException):
    """A reader that did not come back: none of the errors that a reader may catch."""


@dataclass
class Outcome:
    """The outcome of a reader's inputs.

    Attributes:
        inputs: how many were tried.
        accepted: read as something valid.
        refused: ended in the project's own error.
        failures: kinds of other ends with how often.
        slowest_s: processor seconds of the longest reading.
        peak_mb: peak memory of the process after the last one.
    """

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    peak_mb: float = field(default_factory=lambda: _peak_mb())


def mutated(content: bytes, generator: random.Random) -> bytes:
    """The content with one to four changes."""
    for _ in range(generator.choice((1, 1, 1, 2, 3, 4))):
        content = generator.choice(_MUTATIONS)(content, generator)
    return content


def _cut(content: bytes, generator: random.Random) -> bytes:
    return content[: generator.randrange(len(content) + 1)]


def _flip(content: bytes, generator: random.Random) -> bytes:
    if not content:
        return content
    at = generator.randrange(len(content))
    return content[:at] + bytes([generator.randrange(256)]) + content[at + 1 :]


def _value(content: bytes, generator: random.Random) -> bytes:
    found = list(_VALUE.finditer(content))
    if not found:
        return content + generator.choice(_VALUES)
    chosen = generator.choice(found)
    return content[: chosen.start()] + generator.choice(_VALUES) + content[chosen.end() :]


def _swap_values(content: bytes, generator: random.Random) -> bytes:
    found = list(_VALUE.finditer(content))
    if len(found) < 2:
        return content
    one, other = sorted(generator.sample(found, 2), key=lambda each: each.start())
    parts = (
        content[: one.start()],
        other[0],
        content[one.end() : other.start()],
        one[0],
        content[other.end() :],
    )
    return b"".join(parts)


def _lines(content: bytes, generator: random.Random) -> bytes:
    lines = content.splitlines(keepends=True) or [b""]
    at, other = generator.randrange(len(lines)), generator.randrange(len(lines))
    kind = generator.randrange(3)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(other, lines[at])
    else:
        lines[at], lines[other] = lines[other], lines[at]
    return b"".join(lines)


def _splice(content: bytes, generator: random.Random) -> bytes:
    start, end = sorted(generator.randrange(len(content) + 1) for _ in range(2))
    at = generator.randrange(len(content) + 1)
    return content[:at] + content[start : min(end, start + 200)] + content[at:]


def _insert(content: bytes, generator: random.Random) -> bytes:
    at = generator.randrange(len(content) + 1)
    return content[:at] + generator.choice(_VALUES) + content[at:]


def _meaning(content: bytes, generator: random.Random) -> bytes:
    """One value of a line of JSON replaced by one that means something else, or left out, or repeated."""
    size = int.from_bytes(content[:8], "little")
    if content[8:9] == b"{" and size <= len(content):  # what a file of tensors begins with
        header = _meaning(content[8 : 8 + size], generator)
        return len(header).to_bytes(8, "little") + header + content[8 + size :]
    lines = content.split(b"\n")
    number = generator.randrange(len(lines))
    try:
        data = json.loads(lines[number])
    except (ValueError, RecursionError):
        return _value(content, generator)
    lines[number] = json.dumps(_other(data, generator)).encode()
    return b"\n".join(lines)


def _other(data: object, generator: random.Random) -> object:
    """The same plain values but for one."""
    places = list(_places(data))
    if not places:
        return generator.choice(_MEANINGS)
    holder, key = generator.choice(places)
    old = holder[key]
    kind = generator.randrange(8)
    if isinstance(old, str) and old[:1] in ("{", "[") and kind < 6:
        with suppress(ValueError, RecursionError):  # texts of JSON within JSON, as distributions are
            holder[key] = json.dumps(_other(json.loads(old), generator))
            return data
    if kind < 3:
        holder[key] = generator.choice(_MEANINGS)
    elif kind == 3:  # of another place of the same file: a reference to something else
        other, its_key = generator.choice(places)
        holder[key], other[its_key] = other[its_key], holder[key]
    elif kind == 4 and isinstance(holder, dict):
        holder[str(generator.choice(_MEANINGS))] = holder.pop(key)
    elif kind == 5 and isinstance(old, list) and old:
        holder[key] = old * generator.choice((2, 2, 10, _MOST_COPIES // len(old)))
    elif isinstance(old, int | float) and abs(old) < 1e100:
        holder[key] = generator.choice((old + 1, old - 1, -old, old * 10, old * 1e9, old / 3))
    else:
        del holder[key]
    return data


def _places(data: object) -> Iterator[tuple[dict[object, object], object]]:
    """Each value within plain ones, as what holds it, a mapping or a list, and where."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in pairs:
        yield cast("dict[object, object]", data), key
        yield from _places(value)


_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _cut,
    _flip,
    _flip,
    _value,
    _value,
    _value,
    _value,
    _swap_values,
    _meaning,
    _meaning,
    _meaning,
    _lines,
    _splice,
    _insert,
)


def try_one(reader: Reader, content: bytes, folder: Path, outcome: Outcome) -> str | None:
    """Read one input; what went wrong, None if it ended as it should.

    Args:
        reader: what reads it.
        content: the input.
        folder: for files meanwhile.
        outcome: counts how it ended.
    """
    outcome.inputs += 1
    start = time.process_time()
    problem: str | None = None
    try:
        with _limit(LONGEST_S + 1):
            reader.read(content, folder)
        outcome.accepted += 1
    except (InputError, MeasurementError) as error:
        outcome.refused += 1
        message = str(error)
        if "\n" in message or len(message) > MAX_MESSAGE + 100:
            problem = f"message of {len(message)} characters"
    except TookTooLongError:
        problem = "too slow"
    except BaseException as error:  # whatever else there is, is what this looks for
        if isinstance(error, KeyboardInterrupt):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
    taken, peak_mb = time.process_time() - start, _peak_mb()
    outcome.slowest_s = max(outcome.slowest_s, taken)
    if problem is None and taken > LONGEST_S:
        problem = f"{taken:.0f} s"
    if problem is None and peak_mb - outcome.peak_mb > MOST_MEGABYTES:
        problem = f"{peak_mb - outcome.peak_mb:.0f} MB"
    outcome.peak_mb = peak_mb
    if problem is not None:
        outcome.failures[problem] += 1
    return problem


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Let no more than some seconds of processor be used, nor some be waited twice for nothing.

    Somebody may stop this process for minutes, or leave it little of the processor: that is no waiting.
    """
    waited, used = False, time.process_time()

    def over(number: int, frame: FrameType | None) -> None:
        nonlocal waited, used
        idle = time.process_time() - used < _IDLE_S
        if number == signal.SIGPROF or (idle and waited):
            raise TookTooLongError
        waited, used = idle, time.process_time()

    kinds = {signal.SIGALRM: signal.ITIMER_REAL, signal.SIGPROF: signal.ITIMER_PROF}
    previous = {number: signal.signal(number, over) for number in kinds}
    for timer in kinds.values():
        signal.setitimer(timer, seconds, seconds)
    try:
        yield
    finally:
        for number, timer in kinds.items():
            signal.setitimer(timer, 0)
            signal.signal(number, previous[number])


def main() -> None:
    """Try all readers, print a line for each, and keep what ended wrongly."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="for each reader")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each reader")
    parser.add_argument("--reader", default="", help="names, with commas between; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for inputs that ended wrongly")
    parser.add_argument("--output", type=Path, help="JSON file of the counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    wanted = [name for name in arguments.reader.split(",") if name]
    outcomes: dict[str, Outcome] = {}
    # In memory where there is such a folder: on a disk most of the time goes into files.
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own below it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as temporary:
        for reader in readers(Path(temporary)):
            if wanted and reader.name not in wanted:
                continue
            outcome = outcomes.setdefault(reader.name, Outcome())
            generator = random.Random(f"{arguments.seed} {reader.name}")
            folder = Path(temporary) / reader.name
            folder.mkdir()
            for seed in reader.seeds:  # what is not accepted whole tells nothing
                reader.read(seed, folder)
            outcome.peak_mb = _peak_mb()
            deadline = time.monotonic() + arguments.seconds
            while outcome.inputs < arguments.inputs and time.monotonic() < deadline:
                seed, head = generator.choice(reader.seeds), reader.head_bytes
                content = mutated(seed[:head], generator) + seed[head:]
                problem = try_one(reader, content, folder, outcome)
                if problem is not None and outcome.failures[problem] == 1 and arguments.keep:
                    arguments.keep.mkdir(parents=True, exist_ok=True)
                    name = re.sub(r"\W+", "-", problem)
                    (arguments.keep / f"{reader.name}-{name}").write_bytes(content)
            print(
                f"{reader.name}: {outcome.inputs:,} inputs, {outcome.accepted:,} accepted, "
                f"{outcome.refused:,} refused, slowest {outcome.slowest_s:.2f} s, wrong: "
                f"{dict(outcome.failures) or 'none'}",
                flush=True,
            )
            if arguments.output:
                plain = {name: each.__dict__ for name, each in outcomes.items()}
                arguments.output.write_text(json.dumps(plain, indent=1) + "\n")
    print(f"peak memory {_peak_mb():,.0f} MB")
    sys.exit(any(each.failures for each in outcomes.values()))


if __name__ == "__main__":
    main()
