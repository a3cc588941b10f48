"""Give files made to hurt to the commands that read them, as a user would.

    python -m tools.hostile_cases --files FOLDER       # kept ones; a name begins with what it pretends to be
    python -m tools.hostile_cases --invented           # each place with each of KINDS
    python -m tools.hostile_cases --invented --places board,extra --kinds pipe,bom

Each command runs in a folder of its own and must end well, or with one error line and exit code 2 within two
seconds of processor, without a traceback, and leave all that lies beside its folder as it was. Run it as an
ordinary user to try files without permission to read them: root may read all.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from search_spaces.gate import MEGABYTE
from search_spaces.space import SearchSpace
from tools.crash_test import COMMANDS, SPACE, prepare, run
from tools.mutate_readers import LONGEST_S, MOST_MEGABYTES
from tools.reader_cases import Reader, other_idx_files, readers

_SEARCH = ["nas.search", "accuracy=proxy", "search.trials=1", "search.screen=0", "search.references=[]"]
_ESTIMATED = [*_SEARCH, "hardware=rpi4", "search_space=space.yaml"]
_LOOKED_UP = [_ESTIMATED[0], *_ESTIMATED[2:]]
_PROFILE = COMMANDS["profile"]
_TABLE = "results/latency/host-onnxruntime-fp32-1t"
_MEASURED = [*_SEARCH, *_PROFILE[1:]]
_CONTINUED = [*_ESTIMATED, "study.name=study"]
_EXPORT = ["nas.export", "export.architecture=mobilenet_v3_small", "export.output=made/model.onnx"]
_TRAIN = [
    "nas.train",
    "train.resolution=32",
    "dataset=synthetic",
    "train.epochs=1",
    "train.batch_size=32",
    "train.threads=1",
]
_SMALL = "train.architecture=mobilenet_v1_025"
_SUPERNET = COMMANDS["supernet"][:-1]
_FIT = [
    *("nas.predictor", "fit", "data=.", "evaluate=false", "specialised=null", "output=fitted.safetensors"),
    *("steps=1", "inducing=2", "own_inducing=[2, 2]", "sample=2"),
]
# Files that stand beside the one that is tried, by the reader whose whole file they are.
_DATA = {
    "imagenet_networks.jsonl": "published",
    "ofa_supernet.csv": "ofa",
    "accel_nasbench_imagenet.csv": "accel",
    "fashion/train-images-idx3-ubyte.gz": "fashion",
}
# In torch's cache, which is in the command's folder here (``TORCH_HOME``).
_CACHED = "torch/hub/checkpoints/mobilenet_v3_small-047dcff4.pth"
_FOUND = [*COMMANDS["search"], "study.name=found"]
_FASHION = [*_TRAIN, _SMALL, "dataset=fashion_mnist", "dataset.root=fashion"]


@dataclass(frozen=True)
class Place:
    """A place where a command looks for a file.

    Attributes:
        path: of the file, in the command's folder.
        words: the command's module and what it is told.
        seed: name of the reader in :mod:`tools.reader_cases` whose whole file belongs there.
    """

    path: str
    words: list[str]
    seed: str


PLACES = {
    "architecture": Place(
        "case.yaml", [*_EXPORT[:1], "export.architecture=case.yaml", _EXPORT[2]], "architecture"
    ),
    "board": Place("case.yaml", [*_SEARCH, "hardware=case.yaml", "search_space=space.yaml"], "own_board"),
    "space": Place("case.yaml", [*_SEARCH, "hardware=rpi4", "search_space=case.yaml"], "own_space"),
    "card": Place(f"{_TABLE}/card.json", _MEASURED, "card"),
    "table_csv": Place(f"{_TABLE}/table.csv", _MEASURED, "table_csv"),
    "table_json": Place(f"{_TABLE}/table.json", _MEASURED, "table_json"),
    "networks": Place(f"{_TABLE}/networks.json", _MEASURED, "networks"),
    "rounds": Place(f"{_TABLE}/partial-1.jsonl", [*_PROFILE, "profile.max_keys=14"], "rounds"),
    "pending": Place(f"{_TABLE}/pending.json", _PROFILE, "pending"),
    "commit": Place(f"{_TABLE}/.commit.json", _PROFILE, "commit"),
    "lock": Place(f"{_TABLE}/.lock", _PROFILE, "commit"),
    "kit": Place("case.jsonl", ["nas.profile", "hardware=rpi4", "profile.import=case.jsonl"], "kit"),
    "kit_made": Place(
        "kit.zip", ["nas.profile", "hardware=rpi4", *_PROFILE[2:], "profile.kit=kit.zip"], "kit"
    ),
    "extra": Place("case.csv", [*_LOOKED_UP, "accuracy.extra=case.csv"], "extra"),
    "parameters": Place("case.bin", [*_LOOKED_UP, "accuracy.parameters=case.bin"], "predictor"),
    "accuracy_table": Place(
        "case.csv", [*_LOOKED_UP, "accuracy=table", "accuracy.path=case.csv"], "accuracy_table"
    ),
    "accel": Place("case.csv", [*_FIT, "accel=case.csv"], "accel"),
    "published": Place("case.jsonl", [*_FIT, "networks=case.jsonl"], "published"),
    "ofa": Place("case.csv", [*_FIT, "supernet=case.csv"], "ofa"),
    "fitted": Place("fitted.safetensors", _FIT, "predictor"),
    "checkpoint": Place("case.bin", [*_EXPORT, "export.weights=case.bin"], "noted"),
    "training": Place("case.bin", [*_TRAIN, _SMALL, "train.checkpoint=case.bin"], "training"),
    "initial": Place("case.safetensors", [*_TRAIN, _SMALL, "train.init=case.safetensors"], "initial"),
    "teacher": Place(
        "case.safetensors",
        [*_TRAIN, _SMALL, "train.teacher=case.safetensors", "train.distillation=0.5"],
        "initial",
    ),
    "cache": Place(_CACHED, [*_TRAIN, _SMALL, "train.init=mobilenet_v3_small"], "pth"),
    "cifar": Place(
        "cifar/cifar-10-batches-py/data_batch_1",
        [*_TRAIN, _SMALL, "dataset=cifar10", "dataset.root=cifar"],
        "pth",
    ),
    "fashion": Place("fashion/train-labels-idx1-ubyte", _FASHION, "idx"),
    "reference": Place("case.yaml", [*_ESTIMATED, "search.references=[case.yaml]"], "architecture"),
    "budget": Place("case.yaml", [*_ESTIMATED, "search.budget_ms=case.yaml"], "architecture"),
    "database": Place(
        "case.db", [*_ESTIMATED, "study.storage=sqlite:///case.db", "study.name=database"], "sqlite"
    ),
    "start": Place(
        "case.safetensors",
        [
            *_SUPERNET,
            "supernet.start_from=case.safetensors",
            "supernet.architecture=tiny.yaml",
            "supernet.checkpoint=new",
        ],
        "initial",
    ),
    "judging": Place(
        "case.bin",
        [
            *_ESTIMATED,
            "accuracy=supernet",
            "accuracy.checkpoint=case.bin",
            "dataset=synthetic",
            "dataset.resolutions=[32]",
        ],
        "judging_supernet",
    ),
    "trained": Place("case.yaml", [*_TRAIN, "train.architecture=case.yaml"], "architecture"),
    "supernet": Place("case.bin", [*_SUPERNET, "supernet.checkpoint=case.bin"], "supernet"),
    "images": Place(
        "photos/cat/a.png", [*_TRAIN, _SMALL, "dataset=imagefolder", "dataset.root=photos"], "picture"
    ),
    "labels": Place("made/labels.txt", [*_EXPORT, "export.weights=weights.safetensors"], "commit"),
    "preprocessing": Place(
        "made/preprocessing.json", [*_EXPORT, "export.weights=weights.safetensors"], "commit"
    ),
    "report": Place("results/study/study.journal", ["nas.report", "study=results/study"], "report"),
    "study": Place("results/study/study.journal", _CONTINUED, "continued"),
    "study_lock": Place("results/found/.study.journal.lock", _FOUND, "lock"),
    "compared": Place(
        "results/study/study.journal", ["nas.report", "results/found", "results/study"], "report"
    ),
    "page": Place("results/found/report.html", ["nas.report", "study=results/found"], "commit"),
    "figure": Place("results/found/pareto.png", ["nas.report", "study=results/found"], "commit"),
    "found": Place("results/found/architectures", ["nas.report", "study=results/found"], "commit"),
    "config": Place("results/study/config.yaml", _CONTINUED, "commit"),
}
_SAME_AS_ANOTHER = "the same as another kind"
_SAME = {"space_hydra": "space"}
_LONGEST_LINE = 500
# Where files want something written; of this process alone.
_PLANTED = b"/tmp/PWNED-%d" % os.getpid()
# By the clock: somebody may stop all of this for minutes.
_LONGEST_S = 900


def _text(change: Callable[[bytes, random.Random], bytes]) -> Callable[[bytes, Path], None]:
    def make(seed: bytes, path: Path) -> None:
        path.write_bytes(change(seed, random.Random(path.name)))

    return make


_STRING = re.compile(rb'(?<=")[A-Za-z][^"\\\n]{2,40}(?=")|(?<=[:,] )[A-Za-z][\w-]+(?=[\n,}\]])')
_NUMBER = re.compile(rb"(?<=[ ,:\[])\d+(?:\.\d+)?(?=[,}\]\n])")


def _other(pattern: re.Pattern[bytes], value: bytes, share: float = 0.4) -> Callable[[bytes, Path], None]:
    """Some of the values in a file replaced by another one."""

    def change(seed: bytes, generator: random.Random) -> bytes:
        return pattern.sub(lambda found: value if generator.random() < share else found[0], seed)

    return _text(change)


def _outside(name: str) -> Callable[[bytes, Path], None]:
    """A link out of the command's folder."""

    def make(_: bytes, path: Path) -> None:
        work = next(each for each in path.parents if (each / "outside").is_dir())
        path.symlink_to(work / "outside" / name)

    return make


def _pipe(_: bytes, path: Path) -> None:
    os.mkfifo(path)


def _large(seed: bytes, path: Path) -> None:
    path.write_bytes(seed)
    os.truncate(path, 20_000 * MEGABYTE)


def _unreadable(seed: bytes, path: Path) -> None:
    path.write_bytes(seed)
    path.chmod(0)


KINDS: dict[str, Callable[[bytes, Path], None]] = {
    "empty": _text(lambda _, __: b""),
    "folder": lambda _, path: path.mkdir(),
    "pipe": _pipe,
    "endless": lambda _, path: path.symlink_to("/dev/zero"),
    "link_to_nothing": _outside("new"),
    "link_outside": _outside("mine"),
    "link_to_folder": _outside(""),
    "large": _large,
    "unreadable": _unreadable,
    "cut": _text(lambda seed, _: seed[: len(seed) // 2]),
    "bom": _text(lambda seed, _: b"\xef\xbb\xbf" + seed),
    "crlf": _text(lambda seed, _: seed.replace(b"\n", b"\r\n")),
    "cr": _text(lambda seed, _: seed.replace(b"\n", b"\r")),
    "nul": _text(lambda seed, _: seed[:40] + b"\0" + seed[40:]),
    "utf16": _text(lambda seed, _: seed.decode("latin-1").encode("utf-16")),
    "utf16_cut": _text(lambda seed, _: b"\xff\xfe" + seed[:101]),
    "utf32": _text(lambda seed, _: seed.decode("latin-1").encode("utf-32")),
    "latin1": _text(lambda seed, _: seed[:20] + b"\xe9" + seed[20:]),
    "twice": _text(lambda seed, _: seed + seed),
    "deep_lists": _text(lambda _, __: b"[" * 200_000),
    "deep_maps": _text(lambda _, __: b'{"a":' * 50_000),
    "deep_blocks": _text(lambda _, __: b"".join(b" " * each + b"a:\n" for each in range(400))),
    "long_line": _text(lambda seed, _: seed + b"x" * 30 * MEGABYTE),
    "many_lines": _text(lambda seed, _: seed + b"\n" * 30 * MEGABYTE),
    "many_commas": _text(lambda seed, _: seed + b"," * 20 * MEGABYTE),
    "pickle": _text(lambda _, __: b"cos\nsystem\n(S'touch PWNED'\ntR."),
    "zip": _text(lambda seed, _: b"PK\x03\x04" + seed),
    "tag": _other(_STRING, b'!!python/object/apply:os.system ["touch PWNED"]'),
    "directive": _text(lambda seed, _: b"%YAML 9.9\n%TAG ! tag:x,2000:\n---\n" + seed),
    "package": _text(lambda seed, _: b"# @package _global_\nhydra: {run: {dir: %s}}\n%s" % (_PLANTED, seed)),
    "target": _text(lambda seed, _: seed + b"\n_target_: os.system\n_args_: [touch PWNED]\n"),
    "aliases": _text(lambda seed, _: b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b, *c]\n" + seed),
    "interpolation": _other(_STRING, b"${oc.env:HOME}"),
    "parent": _other(_STRING, b"../../outside/new"),
    "absolute": _other(_STRING, _PLANTED),
    "script": _other(_STRING, b"<script>alert(1)</script>"),
    "quotes": _other(_STRING, b"' onload=x &amp;"),
    "markup": _other(_STRING, b"[bold red]x[/] [link=file:///x]y[/nothing]"),
    "formula": _other(_STRING, b"=cmd|'/C calc'!A0"),
    "mathematics": _other(_STRING, b"$\\\\frac{x$ %s {0} {{x}}"),
    "shell": _other(_STRING, b"x; touch PWNED #`touch PWNED`$(touch PWNED)"),
    "option": _other(_STRING, b"-oProxyCommand=touch PWNED"),
    "escapes": _other(_STRING, b"\x1b]0;x\x07\x1b[2J"),
    "invisible": _other(_STRING, "\u202ex\u200b\ufeff".encode()),
    "long_text": _other(_STRING, b"x" * 100_000, 0.1),
    "huge": _other(_NUMBER, b"9" * 400, 0.1),
    "exponent": _other(_NUMBER, b"1e400", 0.1),
    "large_numbers": _other(_NUMBER, b"16777217", 0.3),
    "nan": _other(_NUMBER, b"NaN", 0.1),
    "yaml_nan": _other(_NUMBER, b".nan", 0.1),
    "infinity": _other(_NUMBER, b"-Infinity", 0.1),
    "negative": _other(_NUMBER, b"-1", 0.3),
    "zero": _other(_NUMBER, b"0", 0.3),
    "fraction": _other(_NUMBER, b"0.5", 0.3),
    "truth": _other(_NUMBER, b"true", 0.3),
    "null": _other(_NUMBER, b"null", 0.3),
    "list": _other(_NUMBER, b"[1, 2]", 0.3),
    "map": _other(_STRING, b'", "x": {"y": 1}, "z": "', 0.2),
}


def outcome_of(
    place: Place,
    make: Callable[[Path], None],
    template: Path,
    folder: Path,
    is_new: Callable[[Path], bool] = lambda _: True,
) -> tuple[str, list[str]]:
    """The line in which a command ended over a file, and what is wrong with that.

    Args:
        place: where the file goes and who reads it.
        make: makes it.
        template: folder with what else the command needs.
        folder: for the command, with nothing but ``outside`` beside it.
        is_new: whether a file is to be tried, once it is made.
    """
    shutil.copytree(template, folder, symlinks=True)
    path = folder / place.path
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    make(path)
    if not is_new(path):
        shutil.rmtree(folder)
        return _SAME_AS_ANOTHER, []
    before = _beside(folder)
    code, printed, _ = run(place.words, folder, _LONGEST_S)
    errors = [line for line in printed.splitlines() if line.startswith("error:")]
    problems = []
    if "Traceback" in printed:
        problems.append(printed.strip()[-600:])
    if code not in (0, 2) or (code == 2 and len(errors) != 1):
        problems.append(f"exit code {code}, {len(errors)} error lines: {printed.strip()[-300:]}")
    if any(len(line.replace(str(folder), "")) > _LONGEST_LINE for line in errors):
        problems.append("a long error")
    if "\x1b" in printed:
        problems.append("an escape sequence reached the terminal")
    if before != _beside(folder):
        problems.append("wrote outside its folder")
    if Path(os.fsdecode(_PLANTED)).exists() or list(folder.rglob("PWNED*")):
        problems.append("ran what the file said")
    shutil.rmtree(folder)
    return (errors[0] if errors else "accepted"), problems


def _beside(folder: Path) -> dict[str, bytes]:
    others = (each for each in folder.parent.rglob("*") if each.is_file() and folder not in each.parents)
    return {str(each): each.read_bytes() for each in others if not each.name.endswith(".printed")}


class _Tried:
    """Contents that were put in a place already: kinds that change nothing in a file make the same one."""

    def __init__(self) -> None:
        self._contents: set[tuple[str, bytes]] = set()

    def is_new(self, path: Path) -> bool:
        """True of what is no ordinary small file, and of the first with its content."""
        if (
            path.is_symlink()
            or not path.is_file()
            or path.stat().st_size > MEGABYTE
            or not path.stat().st_mode & 0o400
        ):
            return True
        key = (str(path), path.read_bytes())
        found = key not in self._contents
        self._contents.add(key)
        return found


def _kept(folder: Path) -> Iterator[tuple[str, Place, Callable[[Path], None]]]:
    """Name, place and maker of each file in a folder."""
    for case in sorted(folder.iterdir()):
        name = case.name.partition("-")[0]
        place = PLACES.get(_SAME.get(name, name))
        if place is not None:
            yield case.name, place, lambda path, case=case: shutil.copyfile(case, path)  # type: ignore[misc]


def _invented(
    known: Mapping[str, Reader], places: list[str], kinds: list[str]
) -> Iterator[tuple[str, Place, Callable[[Path], None]]]:
    for name, place in PLACES.items():
        for kind, make in KINDS.items():
            if (not places or name in places) and (not kinds or kind in kinds):
                made = lambda path, make=make, place=place: make(known[place.seed].seeds[-1], path)  # noqa: E731
                yield f"{name} {kind}", place, made


def _prepared(template: Path, known: Mapping[str, Reader]) -> None:
    """Fill the folder that holds what the commands need besides."""
    template.mkdir()
    (template / "space.yaml").write_text(SPACE)
    for words in (
        _PROFILE,
        _FOUND,
        [*_TRAIN, "train.architecture=mobilenet_v3_small", "train.output=weights.safetensors"],
    ):
        code, printed, _ = run(words, template)
        assert code == 0, printed
    # It would keep every other training from beginning.
    (template / "training.safetensors").unlink(missing_ok=True)
    (template / "tiny.yaml").write_text(
        SearchSpace.from_yaml(template / "space.yaml").sample(random.Random(0)).to_yaml()
    )
    (template / "fashion").mkdir()
    for name, content in other_idx_files().items():
        (template / "fashion" / name).write_bytes(content)
    for name, seed in _DATA.items():
        (template / name).write_bytes(known[seed].seeds[0])
    for kind in ("cat", "dog"):
        (template / "photos" / kind).mkdir(parents=True)
        for number in range(20):
            picture = bytes(random.Random(f"{kind}{number}").randrange(256) for _ in range(192))
            (template / "photos" / kind / f"{number}.ppm").write_bytes(b"P6 8 8 255\n" + picture)


def main() -> None:
    """Try all files, print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--files", type=Path, help="folder of kept files")
    parser.add_argument("--invented", action="store_true", help="each place with each kind")
    parser.add_argument("--places", default="", help="names, with commas between; all by default")
    parser.add_argument("--kinds", default="", help="names, with commas between; all by default")
    parser.add_argument("--shuffled", action="store_true", help="in random order, to be stopped at any time")
    arguments = parser.parse_args()
    places, kinds = (
        [each for each in text.split(",") if each] for text in (arguments.places, arguments.kinds)
    )
    os.environ["TORCH_HOME"] = "torch"
    prepare(("nas.predictor",))
    tried = wrong = 0
    tried_of: defaultdict[tuple[str, ...], _Tried] = defaultdict(_Tried)
    # In memory where there is such a folder: on a disk most of the time goes into files.
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own below it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as temporary:
        template, work = Path(temporary) / "template", Path(temporary) / "work"
        known = {each.name: each for each in readers(Path(temporary))}
        _prepared(template, known)
        (work / "outside").mkdir(parents=True)
        (work / "outside" / "mine").write_text('{"mine": 1}\n{"torn')
        cases = [*_kept(arguments.files)] if arguments.files else []
        if arguments.invented:
            cases += _invented(known, places, kinds)
        if arguments.shuffled:
            random.Random(0).shuffle(cases)
        for name, place, make in cases:
            began = os.times()
            said, problems = outcome_of(
                place, make, template, work / "case", tried_of[place.path, *place.words].is_new
            )
            ended = os.times()
            seconds = (
                ended.children_user + ended.children_system - began.children_user - began.children_system
            )
            if said not in ("accepted", _SAME_AS_ANOTHER) and seconds > LONGEST_S:
                problems.append(f"refused after {seconds:.1f} s")
            tried += said != _SAME_AS_ANOTHER
            wrong += bool(problems)
            print(f"{name}: {seconds:.1f} s of processor, {said[:150]} {problems or ''}", flush=True)
    own_mb, peak_mb = (
        resource.getrusage(each).ru_maxrss / 1e3 for each in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    added_mb = max(0.0, peak_mb - own_mb)
    print(f"{tried} files, {wrong} ended wrongly; a command took {added_mb:,.0f} MB at most beside its code")
    sys.exit(bool(wrong) or added_mb > MOST_MEGABYTES)


if __name__ == "__main__":
    main()
