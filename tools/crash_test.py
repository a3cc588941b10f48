"""Kill commands at random moments and before each of their file operations; run them again; look.

    python -m tools.crash_test --folder /tmp/crashes --moments 100 --output results/crashes.json
    python -m tools.crash_test --folder /tmp/interrupts --signal INT   # Ctrl-C: one line, exit code 130
    python -m tools.crash_test --folder /tmp/terminated --signal TERM       # the same with 143
    python -m tools.crash_test --folder /tmp/two --together --moments 5     # each command twice at once
    python -m tools.crash_test --folder /tmp/full --full-disk --moments 11   # needs root: mounts small disks
    python -m tools.crash_test --folder /tmp/other --full-temporary     # the disk of temporary files is full

Each command first runs undisturbed. Then copies of it are killed, half of them at a random moment with
SIGKILL, the others before one of their file operations (see :mod:`tools.dying`), and the same command is
typed again until it ends. It must end normally, with as many trials as asked for, none twice, everything that
was complete before, and files that parse.

Every command is a process of its own, forked from this one, which has imported what all of them import: that
takes longer than the commands themselves. Two things are other than a user has them. Every round of a
measurement counts, as other work shares the machine; and a worker of a shared study is taken for dead after
two seconds instead of sixty.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import io
import json
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import optuna
import safetensors.numpy
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from matplotlib.figure import Figure
from optuna import get_all_study_names
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from nas.command import store_schemas
from nas.devices.kit import parse_result
from nas.help import CONFIG_FOLDER
from nas.latency.sessions import load_networks
from nas.latency.table import LatencyTable
from nas.latency.validation import load_card
from nas.measuring import rounds
from nas.page import figures
from nas.page.reading import read_study, report_of
from nas.runtimes.runtime import Runtime
from nas.settings import SearchConfig
from nas.study import leases
from nas.study.storage import open_storage
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from tools.dying import DIED, die_before
from tools.postgres import PostgresServer

# What a command is, and what it imports on its way.
_COMMAND_MODULES = (
    "nas.profile",
    "nas.search",
    "nas.validate",
    "nas.train",
    "nas.supernet",
    "nas.export",
    "nas.report",
    "nas.compare",
)
_LIBRARIES = ("matplotlib.pyplot", "pandas", "psycopg", "sqlalchemy.orm", "torchvision")
_LEASE_S = 2.0
_PNG_DPI = 30
_POLL_S = 0.002
_TRIES = 5
# More than any of the commands has.
_MOST_OPERATIONS = 120
# Stands for the URL of a database of its own.
_DATABASE = "DATABASE"
# Of what a command writes, that the disk has room for: from nothing to a little more than all.
_DISK_SHARES = (0.0, 1.05)
_PAGE = 4096
# Where temporary files are put: no file can be made, one or two, or large ones cannot.
_TEMPORARY = ("size=4k,nr_inodes=1", "size=4k,nr_inodes=2", "size=4k,nr_inodes=3", "size=8k", "size=64k")
_ROUNDS = 3
INTERRUPTED = 130
_SAID = {int(signal.SIGINT): "interrupted", int(signal.SIGTERM): "terminated"}
SPACE = """name: tiny
resolutions: [32]
stems: [{channels: 16, activation: hswish}]
stages:
- {stride: 2, depths: [1, 2], widths: [24, 32], expansions: [3, 4]}
- {stride: 2, depths: [1], widths: [40], kernels: [3, 5], expansions: [3]}
- {stride: 2, depths: [1], widths: [80], expansions: [4], activations: [hswish]}
- {stride: 2, depths: [1], widths: [96], expansions: [4], se: [false, true]}
heads: [{conv_ratio: 6, hidden_channels: 64, activation: hswish}]
"""
_PROFILE = [
    "hardware=host",
    "search_space=space.yaml",
    "profile.max_keys=12",
    "profile.networks=4",
    f"profile.rounds={_ROUNDS}",
]
_SEARCH = ["search.references=[mobilenet_v1_025]", "search.screen=0"]
# Too few for importances of parameters, which take time and are no matter of files.
_TRIALS = "search.trials=18"
_TRAIN = [
    "accuracy=train",
    "dataset=synthetic",
    "dataset.resolutions=[32]",
    "dataset.limit=64",
    "accuracy.epochs=1",
    "accuracy.scatter=0",
    "accuracy.threads=1",
    "search.trials=4",
]
_FINAL = ["train.epochs=4", "train.batch_size=32", "train.warmup_epochs=1", "train.threads=1"]
_EXPORT = ["nas.export", "export.architecture=mobilenet_v1_025", "export.resolution=32"]
COMMANDS: dict[str, list[str]] = {
    "profile": ["nas.profile", *_PROFILE],
    "search": ["nas.search", *_PROFILE, *_SEARCH, "accuracy=proxy", _TRIALS],
    "shared": [
        "nas.search",
        *_PROFILE,
        *_SEARCH,
        "accuracy=proxy",
        _TRIALS,
        f"study.storage={_DATABASE}",
    ],
    "train": ["nas.search", *_PROFILE, *_SEARCH, *_TRAIN],
    "best": ["nas.search", *_PROFILE, *_SEARCH, *_TRAIN, "search.train_best=1", *_FINAL],
    "final": [
        "nas.train",
        "train.architecture=mobilenet_v1_025",
        "train.resolution=32",
        "dataset=synthetic",
        *_FINAL,
        "train.output=results/weights.safetensors",
        "train.checkpoint=results/training.safetensors",
    ],
    "supernet": [
        "nas.supernet",
        "search_space=space.yaml",
        "dataset=synthetic",
        "dataset.resolutions=[32]",
        "supernet.epochs=3",
        "supernet.batch_size=32",
        "supernet.threads=1",
        "supernet.checkpoint=results/weights.safetensors",
    ],
    "validate": ["nas.validate", *_PROFILE, "validate.networks=6", "validate.rounds=3"],
    "export": [*_EXPORT, "export.weights=results/weights.safetensors", "export.output=results/model.onnx"],
    "litert": [
        *_EXPORT,
        "export.weights=results/weights.safetensors",
        "export.format=litert",
        "export.precision=int8",
        "export.output=results/model.tflite",
    ],
    "compare": [
        "nas.compare",
        "compare.networks=[mobilenet_v1_025]",
        "compare.resolution=32",
        "compare.runtimes=[onnxruntime,ncnn]",
        "compare.threads=[1,2]",
        "compare.rounds=4",
    ],
    "report": ["nas.report", "study=results/found"],
    "make_kit": ["nas.profile", "hardware=rpi4", *_PROFILE[1:], "profile.kit=results/kit.zip"],
    "kit": ["kit.zip", "--folder", "results"],
}
COMMANDS["bundle"] = [*COMMANDS["final"], "train.bundle=results/bundle"]
_EXPORTS = ("export", "litert")
# What comes before a command, undisturbed.
_BEFORE: dict[str, list[str]] = {
    # What a search does first, and what dies for itself.
    **dict.fromkeys(("search", "shared", "train", "best"), COMMANDS["profile"]),
    "validate": COMMANDS["profile"],
    "export": COMMANDS["final"],
    "litert": COMMANDS["final"],
    "report": [*COMMANDS["search"], "study.name=found"],
    "kit": ["nas.profile", "hardware=rpi4", *_PROFILE[1:], "profile.kit=kit.zip"],
}
# What a command writes again bit for bit, besides weights.
_REPEATED = {
    "export": ["model.onnx", "labels.txt", "preprocessing.json"],
    "litert": ["model.tflite", "labels.txt", "preprocessing.json"],
    "report": ["found/report.html", "found/summary.md", "found/pareto.*", "found/architectures/*"],
}


@dataclass
class Outcome:
    """The outcome of a command's deaths.

    Attributes:
        killed_at_random: runs killed at a random moment.
        killed_before_operations: runs that died before a file operation.
        survived: runs that ended before they were to be killed.
        problems: what was wrong afterwards.
    """

    killed_at_random: int = 0
    killed_before_operations: int = 0
    survived: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class Pairs:
    """The outcome of a command that ran twice at once.

    Attributes:
        both_ended: pairs that both did all that was asked.
        one_refused: pairs of which one was told that the other is at it.
        problems: what was wrong afterwards.
    """

    both_ended: int = 0
    one_refused: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Deaths:
    """The ways in which a command is to die.

    Attributes:
        moments: how often.
        seed: of the moments.
        kind: ``random`` moments, before file ``operations``, or ``both`` in turn.
        ends_by: the signal at a random moment.
    """

    moments: int
    seed: int = 0
    kind: str = "both"
    ends_by: int = signal.SIGKILL


@dataclass(frozen=True)
class Case:
    """A command, and where it is tried.

    Attributes:
        name: of the command.
        template: folder that it begins in.
        work: where folders are made.
        server: of databases, for a command that needs one.
    """

    name: str
    template: Path
    work: Path
    server: PostgresServer | None = None

    def undisturbed(self) -> tuple[Path, dict[str, str], float]:
        """Folder, digests of what is the same each time, and seconds of the command when nothing happens.

        Raises:
            RuntimeError: if it does not end normally even so.
        """
        whole = self.work / f"{self.name}-whole"
        shutil.copytree(self.template, whole)
        words = self.words(whole)
        code, printed, seconds = run(words, whole)
        problems = [printed[-300:]] if code else check(self.name, words, whole, set())
        if problems:
            raise RuntimeError(f"{self.name}, undisturbed: exit code {code}: {problems}")
        return whole, _made(self.name, whole), seconds

    def words(self, folder: Path) -> list[str]:
        """Words that are typed, with a database of its own for each folder where it needs one."""
        if not any(_DATABASE in each for each in COMMANDS[self.name]):
            return COMMANDS[self.name]
        assert self.server is not None
        url = self.server.database(f"{folder.name}-{time.monotonic_ns()}")
        return [each.replace(_DATABASE, url) for each in COMMANDS[self.name]]

    def again(
        self, words: Sequence[str], folder: Path, before: set[int], made: dict[str, str]
    ) -> tuple[str, list[str]]:
        """Output of the same command, typed again, and what is wrong then."""
        code, printed, _ = run(words, folder)
        # One that died after its last file has nothing left to do, and says so.
        ended = code == 0 or (self.name in _EXPORTS and "exists already" in printed)
        if not ended or "Traceback" in printed:
            return printed, [f"exit code {code}: {printed.strip()[-300:]}"]
        found = check(self.name, words, folder, before)
        return printed, found + _other_files(made, _made(self.name, folder))


def prepare(more: Sequence[str] = ()) -> None:
    """Import what the commands import, and let every round count and leases be short.

    Args:
        more: modules of further commands.
    """
    os.environ["PYTHONPATH"] = str(Path.cwd())
    for module in (*_LIBRARIES, *_COMMAND_MODULES, *more):
        importlib.import_module(module)
    for module in (*_COMMAND_MODULES, *more):  # runs as the main one, as it does for a user
        del sys.modules[module]
    rounds.STEADY_TOLERANCE = 1e9
    leases.LEASE_S = _LEASE_S
    figures._PNG_DPI = _PNG_DPI
    # Composed twice otherwise, first to see whether it is told to sweep: nothing here is.
    Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]
    # Parsers learn their grammar, and figures find their fonts, once for all.
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        store_schemas("search", SearchConfig)
        compose("search", [*_PROFILE[2:], *_SEARCH])
    GlobalHydra.instance().clear()
    figure = Figure()
    figure.subplots().plot([1, 2], label="a")
    figure.legend(title="b")
    for form in ("png", "svg"):
        figure.savefig(io.BytesIO(), format=form)
    gc.freeze()


def run(
    words: Sequence[str],
    folder: Path,
    seconds: float | None = None,
    dies_before: int | None = None,
    ends_by: int = signal.SIGKILL,
    temporary: Path | None = None,
) -> tuple[int, str, float]:
    """(exit code, what it printed, seconds) of a command in a folder.

    Args:
        words: the command's module and what it is told.
        folder: where it runs.
        seconds: after which it is sent a signal, if given.
        dies_before: number of the file operation before which it dies, if given.
        ends_by: that signal.
        temporary: where Python puts temporary files, if not where it usually does.
    """
    start = time.monotonic()
    child, printed = _started(words, folder, dies_before, temporary=temporary)
    killed = False
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if seconds is not None and not killed and time.monotonic() - start >= seconds:
            os.kill(child, ends_by)
            killed = True
        time.sleep(_POLL_S)
    text = printed.read_text(errors="replace")
    printed.unlink()
    return os.waitstatus_to_exitcode(status), text, time.monotonic() - start


def _started(
    words: Sequence[str],
    folder: Path,
    dies_before: int | None = None,
    number: int = 0,
    temporary: Path | None = None,
) -> tuple[int, Path]:
    """A command's process, and the file of what it prints."""
    printed = folder.with_name(f"{folder.name}-{number}.printed")
    printed.touch()  # it may be killed before it does anything
    child = os.fork()
    if child == 0:
        tempfile.tempdir = None if temporary is None else str(temporary)
        _become(words, folder, printed, dies_before)
    return child, printed


def _become(words: Sequence[str], folder: Path, printed: Path, dies_before: int | None) -> None:
    """Be the command: never returns."""
    code = 1
    try:
        output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        sys.argv = list(words)
        if dies_before is not None:
            die_before(dies_before, folder / "results")
        try:
            if words[0].endswith(".zip"):
                runpy.run_path(words[0], run_name="__main__")
            else:
                runpy.run_module(words[0], run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
    except KeyboardInterrupt:  # before the command's own hook is there
        code = INTERRUPTED
        print("interrupted", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def studies(folder: Path, words: Sequence[str]) -> Iterator[list[optuna.Study]]:
    """The studies that a command has begun in a folder, or in its database."""
    url = next((each.partition("=")[2] for each in words if each.startswith("study.storage=")), None)
    if url is None:
        found = []
        for journal in folder.glob("results/*/study.journal"):
            with suppress(InputError):  # there is none in it yet
                found.append(read_study(journal.parent))
        yield found
        return
    storage = open_storage(url)
    assert isinstance(storage, RDBStorage)
    try:
        yield [optuna.load_study(study_name=name, storage=storage) for name in get_all_study_names(storage)]
    finally:
        storage.remove_session()
        storage.engine.dispose()  # no command shall inherit a connection


def complete_trials(folder: Path, words: Sequence[str]) -> set[int]:
    """Numbers of the complete trials of the studies of a command; empty where there is none yet."""
    with studies(folder, words) as found:
        return {
            trial.number
            for study in found
            for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        }


def check(name: str, words: Sequence[str], folder: Path, before: set[int]) -> list[str]:
    """Faults in the files of a command that has ended.

    Args:
        name: of the command.
        words: what it is told.
        folder: where it ran.
        before: numbers of the trials that were complete before.
    """
    problems = []
    for path in folder.glob("results/latency/*"):
        table = LatencyTable.load(path)
        if table.header.calibration is None:
            problems.append("the table is not calibrated")
        counts = Counter(each.architecture for each in load_networks(path))
        if max(counts.values()) > 1:
            problems.append("a network was measured twice")
        samples = len(list(path.glob("samples-*.jsonl")))
        if samples != len(table.header.sessions):
            problems.append(f"{len(table.header.sessions)} sessions, {samples} samples")
        unfinished = re.compile(r"\.(?!lock)|partial|pending|validating")
        leftovers = [each.name for each in path.iterdir() if unfinished.match(each.name)]
        if leftovers:
            problems.append(f"left over: {leftovers}")
        if name == "validate" and load_card(path) is None:
            problems.append("there is no card")
    wanted = next((int(each[14:]) for each in words if each.startswith("search.trials=")), None)
    with studies(folder, words) as found:
        if wanted is not None and not found:
            problems.append("there is no study")
        for study in found if wanted is not None else ():
            report = report_of(study, importances=False)
            candidates = [each for each in report.networks if each.kind == "candidate"]
            different = len({each.id for each in candidates})
            if len(candidates) != wanted or different != wanted:
                problems.append(f"{len(candidates)} candidates, {different} different")
    missing = before - complete_trials(folder, words)
    if missing:
        problems.append(f"trials {sorted(missing)} were lost")
    for path in folder.glob("results/*/architectures/*.yaml"):
        if Architecture.from_file(path).id != path.stem:
            problems.append(f"{path.name} is another network")
    if name == "kit":
        problems += _check_kit(folder)
    return problems


def _check_kit(folder: Path) -> list[str]:
    """Faults in what the board wrote."""
    result = parse_result((folder / "results/kit-result.jsonl").read_text(), "result", "rpi4", Runtime())
    problems = [*result.problems]
    for group in result.groups:
        rounds_there = len(group.measurement.samples_ms)
        if rounds_there != _ROUNDS:
            problems.append(f"group {group.number} has {rounds_there} rounds")
    wanted = {"kit-result.jsonl", "kit-rounds"}
    others = {each.name for each in (folder / "results").iterdir()} - wanted
    return problems + ([f"left over: {sorted(others)}"] if others else [])


def crash(case: Case, deaths: Deaths) -> Outcome:
    """Kill or interrupt a command often, and see what the same command makes of what is left."""
    outcome, name = Outcome(), case.name
    _, made, seconds = case.undisturbed()
    operations = _MOST_OPERATIONS
    generator = random.Random(f"{deaths.seed} {name}")
    for moment in range(deaths.moments):
        folder = case.work / f"{name}-{moment}"
        shutil.copytree(case.template, folder)
        words = case.words(folder)
        at_random = deaths.kind == "random" or (deaths.kind == "both" and moment % 2 == 0)
        # A moment after the end, or an operation that there is not, is no death: another one is tried.
        for _ in range(_TRIES):
            if at_random:
                code, said, _ = run(words, folder, generator.uniform(0, 1) * seconds, ends_by=deaths.ends_by)
                died = code in (-deaths.ends_by, 128 + deaths.ends_by)
                wrong = not died
                if deaths.ends_by in _SAID:
                    lines = [line for line in said.splitlines() if line.startswith(_SAID[deaths.ends_by])]
                    # Before a command has begun there is nobody yet to say so.
                    silent = code == -signal.SIGTERM and not said
                    wrong |= len(lines) != 1 - silent or "Traceback" in said or "Exception ignored" in said
                if wrong and code != 0:
                    outcome.problems.append(f"moment {moment}: exit code {code}: {said.strip()[-600:]}")
            else:
                number = generator.randint(1, operations)
                code, _, _ = run(words, folder, dies_before=number)
                died = code == DIED
                if not died:
                    operations = max(8, number - 1)
            if died:
                break
            shutil.rmtree(folder)
            shutil.copytree(case.template, folder)
            words = case.words(folder)
        outcome.killed_at_random += died and at_random
        outcome.killed_before_operations += died and not at_random
        outcome.survived += not died
        before = complete_trials(folder, words)
        printed, found = case.again(words, folder, before, made)
        outcome.problems += [f"moment {moment}: {each}" for each in found]
        if found:
            (folder / "printed").write_text(printed)
        else:
            shutil.rmtree(folder)
        how = f"{'by a signal' if at_random else 'before an operation'}, {'died' if died else 'survived'}"
        print(f"{name} {moment}: {how} {found or ''}", flush=True)
    return outcome


def together(case: Case, pairs: int) -> Pairs:
    """The outcome of a command that runs twice at once in one folder.

    Args:
        case: the command.
        pairs: how often; the second begins later by up to four fifths of the time that one takes.
    """
    outcome, name = Pairs(), case.name
    generator = random.Random(name)
    _, made, seconds = case.undisturbed()
    for pair in range(pairs):
        folder = case.work / f"{name}-pair-{pair}"
        shutil.copytree(case.template, folder)
        words = case.words(folder)
        started = [_started(words, folder)]
        time.sleep(generator.uniform(0, 0.8 * seconds))
        started.append(_started(words, folder, number=1))
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in started]
        said = [printed.read_text(errors="replace") for _, printed in started]
        refused = [
            code == 2
            and bool(
                re.search(r"(?m)^error: .* (is|are) in use by process \d+|^error: .*exists already", text)
            )
            for code, text in zip(ends, said, strict=True)
        ]
        found = [
            f"exit code {code}: {text.strip()[-400:]}"
            for code, text, each in zip(ends, said, refused, strict=True)
            if "Traceback" in text or not (code == 0 or each)
        ]
        if all(refused):
            found.append("both were refused")
        if not found:
            found += check(name, words, folder, set()) + _other_files(made, _made(name, folder))
        outcome.one_refused += any(refused)
        outcome.both_ended += not any(refused)
        outcome.problems += [f"pair {pair}: {each}" for each in found]
        for _, printed in started:
            printed.unlink()
        if not found:
            shutil.rmtree(folder)
        print(f"{name} pair {pair}: exit codes {ends} {found or ''}", flush=True)
    return outcome


def _made(name: str, folder: Path) -> dict[str, str]:
    """Digests of what a command makes the same each time: of weights' tensors, of other files' bytes."""
    results = folder / "results"
    digests = {}
    for path in sorted(each for pattern in _REPEATED.get(name, ()) for each in results.glob(pattern)):
        digests[str(path.relative_to(results))] = hashlib.sha256(path.read_bytes()).hexdigest()
    weights = results / "weights.safetensors"
    if weights.exists():
        digest = hashlib.sha256()
        for tensor_name, tensor in sorted(safetensors.numpy.load_file(weights).items()):
            digest.update(tensor_name.encode() + tensor.tobytes())
        digests[weights.name] = digest.hexdigest()
    return digests


def _other_files(undisturbed: dict[str, str], found: dict[str, str]) -> list[str]:
    names = sorted(each for each in undisturbed | found if undisturbed.get(each) != found.get(each))
    return [f"other than undisturbed: {', '.join(names)}"] if names else []


def fill(case: Case, disks: int) -> Outcome:
    """Run a command on so many disks that are too small, then again when there is room; what was wrong."""
    outcome, name, template = Outcome(), case.name, case.template
    whole, made, _ = case.undisturbed()
    begun, needed = _kilobytes(template), _kilobytes(whole)
    for share in np.linspace(*_DISK_SHARES, disks):
        kilobytes = begun + round(float(share) * (needed - begun))
        folder = case.work / f"{name}-{kilobytes}k"
        with _small_disk(folder, f"size={kilobytes}k"):
            shutil.copytree(template, folder, dirs_exist_ok=True)
            words = case.words(folder)
            code, printed, _ = run(words, folder)
            found = _said_once(code, printed)
            before = complete_trials(folder, words)
            _mount(folder, "remount,size=500m")
            found += case.again(words, folder, before, made)[1]
        outcome.problems += [f"{kilobytes} kB: {each}" for each in found]
        outcome.survived += code == 0
        print(f"{name}, {kilobytes} kB: exit code {code} {_error(printed)} {found or ''}", flush=True)
    return outcome


def fill_temporary(case: Case) -> Outcome:
    """Run a command where temporary files find no room, then again where they do; what was wrong."""
    outcome, name = Outcome(), case.name
    _, made, _ = case.undisturbed()
    for number, options in enumerate(_TEMPORARY):
        folder = case.work / f"{name}-{number}"
        shutil.copytree(case.template, folder)
        words = case.words(folder)
        with _small_disk(case.work / "temporary", options) as temporary:
            code, printed, _ = run(words, folder, temporary=temporary)
        found = _said_once(code, printed)
        found += case.again(words, folder, complete_trials(folder, words), made)[1]
        outcome.problems += [f"{options}: {each}" for each in found]
        outcome.survived += code == 0
        print(f"{name}, {options}: exit code {code} {_error(printed)} {found or ''}", flush=True)
    return outcome


def _kilobytes(folder: Path) -> int:
    """Room that the files of a folder take on such a disk, in pages."""
    sizes = (each.stat().st_size for each in folder.rglob("*") if each.is_file())
    return sum(-(-size // _PAGE) * _PAGE // 1024 for size in sizes)


def _said_once(code: int, printed: str) -> list[str]:
    """Faults in what a command said of a full disk: a line with the file, why, and what to do."""
    said = r"cannot (?:write|use) \S.*: No space left on device; |\S+=\S+ needs about .*: "
    right = len(re.findall(rf"(?m)^(?:error: )?(?:{said})make room there", printed))
    if "Traceback" in printed or "Exception ignored" in printed or right != (code != 0):
        return [f"exit code {code}: {printed.strip()[-600:]}"]
    return []


def _error(printed: str) -> str:
    return " ".join(line for line in printed.splitlines() if "make room" in line)


@contextmanager
def _small_disk(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    _mount(folder, options)
    try:
        yield folder
    finally:
        subprocess.run(["/bin/umount", str(folder)], check=True)  # noqa: S603
        folder.rmdir()


def _mount(folder: Path, options: str) -> None:
    words = ["/bin/mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(words, check=True)  # noqa: S603


def main() -> None:
    """Crash all commands, print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--folder", type=Path, required=True, help="a new folder to work in")
    parser.add_argument("--moments", type=int, default=50, help="for each command; or disks")
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--kind", choices=("both", "random", "operations"), default="both", help="of moments")
    parser.add_argument("--signal", choices=("INT", "TERM"), help="instead of killing: Ctrl-C, or as systemd")
    parser.add_argument("--together", action="store_true", help="two at once instead of killing")
    parser.add_argument("--full-disk", action="store_true", help="fill disks instead of killing")
    parser.add_argument("--full-temporary", action="store_true", help="fill what holds temporary files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file of the outcomes")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    empty = arguments.folder / "empty"
    empty.mkdir()
    (empty / "space.yaml").write_text(SPACE)
    prepare()
    names = arguments.commands.split(",")
    deaths = Deaths(arguments.moments, arguments.seed, arguments.kind)
    if arguments.signal:
        ends_by = signal.Signals[f"SIG{arguments.signal}"]
        deaths = Deaths(arguments.moments, arguments.seed, "random", ends_by)
    outcomes: dict[str, Outcome | Pairs] = {}
    with ExitStack() as stack:
        server = stack.enter_context(PostgresServer()) if "shared" in names else None
        for name in names:
            template = empty
            if first := _BEFORE.get(name):
                template = arguments.folder / f"before-{name}"
                shutil.copytree(empty, template)
                code, printed, _ = run(first, template)
                assert code == 0, printed
                for pattern in _REPEATED.get(name, ()):
                    for path in (template / "results").glob(pattern):
                        path.unlink()
            case = Case(name, template, arguments.folder, server)
            outcome: Outcome | Pairs
            if arguments.together:
                outcome = together(case, arguments.moments)
            elif arguments.full_disk:
                outcome = fill(case, arguments.moments)
            elif arguments.full_temporary:
                outcome = fill_temporary(case)
            else:
                outcome = crash(case, deaths)
            outcomes[name] = outcome
            print(f"{name}: {outcome}", flush=True)
            if arguments.output:
                arguments.output.write_text(
                    json.dumps({each: asdict(found) for each, found in outcomes.items()}, indent=1) + "\n"
                )
    sys.exit(any(each.problems for each in outcomes.values()))


if __name__ == "__main__":
    main()
