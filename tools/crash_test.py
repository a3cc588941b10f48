"""Kill commands at random moments and before each of their file operations; run them again; look.

    python -m tools.crash_test --folder /tmp/crashes --moments 50 --output results/crashes.json
    python -m tools.crash_test --folder /tmp/full --full-disk        # needs root: mounts small file systems

Each command first runs undisturbed. Then copies of it are killed, half of them at a random moment with
SIGKILL, the others before one of their file operations (see :mod:`tools.dying`), and the same command is
typed again until it ends. It must end normally, with as many trials as asked for, none twice, everything that
was complete before, and files that parse.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors.numpy
from optuna.trial import TrialState

from nas.latency.sessions import load_networks
from nas.latency.table import LatencyTable
from nas.latency.validation import load_card
from nas.page.report import read_study, report_of
from search_spaces.architecture import Architecture
from tools.dying import DIED

_REPEATS = 4
_DISK_KILOBYTES = (8, 16, 32, 48, 64, 96, 128, 192, 256)
_SPACE = """name: tiny
resolutions: [96, 128]
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
    "profile.rounds=3",
]
_SEARCH = ["search.references=[mobilenet_v1_025]", "search.screen=0"]
COMMANDS: dict[str, list[str]] = {
    "profile": ["nas.profile", *_PROFILE],
    "search": ["nas.search", *_PROFILE, *_SEARCH, "accuracy=proxy", "search.trials=30"],
    "train": [
        "nas.search",
        *_PROFILE,
        *_SEARCH,
        "accuracy=train",
        "dataset=synthetic",
        "dataset.resolutions=[32]",
        "accuracy.epochs=1",
        "search.trials=4",
    ],
    "final": [
        "nas.train",
        "train.architecture=mobilenet_v1_025",
        "train.resolution=32",
        "dataset=synthetic",
        "train.epochs=6",
        "train.batch_size=32",
        "train.warmup_epochs=1",
        "train.threads=1",
        "train.output=results/weights.safetensors",
        "train.checkpoint=results/training.safetensors",
    ],
    "supernet": [
        "nas.supernet",
        "search_space=space.yaml",
        "dataset=synthetic",
        "dataset.resolutions=[32]",
        "supernet.epochs=4",
        "supernet.batch_size=32",
        "supernet.threads=1",
        "supernet.checkpoint=results/weights.safetensors",
    ],
    "validate": ["nas.validate", *_PROFILE, "validate.networks=6", "validate.rounds=3"],
}


@dataclass
class Outcome:
    """What became of a command's deaths.

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


def run(words: Sequence[str], folder: Path, seconds: float | None = None) -> tuple[int, str, float]:
    """(exit code, what it printed, seconds) of a command in a folder; killed after so many, if given."""
    start = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 - this project's own commands
        [sys.executable, "-m", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
    return process.returncode, printed, time.monotonic() - start


def complete_trials(folder: Path) -> set[int]:
    """Numbers of the complete trials of the studies below a folder; empty where there is none yet."""
    found: set[int] = set()
    for journal in folder.glob("results/*/study.journal"):
        try:
            trials = read_study(journal.parent).get_trials(deepcopy=False)
        except ValueError:
            continue
        found |= {each.number for each in trials if each.state == TrialState.COMPLETE}
    return found


def check(name: str, folder: Path, before: set[int]) -> list[str]:
    """What is wrong with the files of a command that has ended."""
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
    for journal in folder.glob("results/*/study.journal"):
        study = read_study(journal.parent)
        wanted = int(
            next(each for each in COMMANDS[name] if each.startswith("search.trials=")).partition("=")[2]
        )
        report = report_of(study, importances=False)
        candidates = [each for each in report.networks if each.kind == "candidate"]
        if len(candidates) != wanted or len({each.id for each in candidates}) != wanted:
            problems.append(
                f"{len(candidates)} candidates, {len({each.id for each in candidates})} different"
            )
        missing = before - complete_trials(folder)
        if missing:
            problems.append(f"trials {sorted(missing)} were lost")
        for path in journal.parent.glob("architectures/*.yaml"):
            if Architecture.from_file(path).id != path.stem:
                problems.append(f"{path.name} is another network")
    return problems


def crash(name: str, template: Path, work: Path, moments: int, generator: random.Random) -> Outcome:
    """Kill a command often, and see what the same command makes of what is left."""
    outcome = Outcome()
    words = COMMANDS[name]
    whole = work / f"{name}-whole"
    shutil.copytree(template, whole)
    code, printed, seconds = run(words, whole)
    if code != 0:
        return Outcome(problems=[f"undisturbed: exit code {code}: {printed[-300:]}"])
    outcome.problems += check(name, whole, set())
    weights = _weights(whole)
    operations = 60
    for moment in range(moments):
        folder = work / f"{name}-{moment}"
        shutil.copytree(template, folder)
        at_random = moment % 2 == 0
        if at_random:
            code, _, _ = run(words, folder, generator.uniform(0.3, 1.0) * seconds)
            died = code == -signal.SIGKILL
            outcome.killed_at_random += died
        else:
            number = str(generator.randint(1, operations))
            code, _, _ = run(["tools.dying", number, "results", *words], folder)
            died = code == DIED
            outcome.killed_before_operations += died
            if not died:
                operations = max(8, int(number))
        outcome.survived += not died
        before = complete_trials(folder)
        for _ in range(_REPEATS):
            code, printed, _ = run(words, folder)
            # A busy machine may not hold still; that is said, and the same command goes on.
            if code == 0 or "did not hold still" not in printed:
                break
        if code != 0 or "Traceback" in printed:
            outcome.problems.append(f"moment {moment}: exit code {code}: {printed.strip()[-300:]}")
        else:
            outcome.problems += [f"moment {moment}: {each}" for each in check(name, folder, before)]
            if _weights(folder) != weights:
                outcome.problems.append(
                    f"moment {moment}: other weights than those of an undisturbed training"
                )
        shutil.rmtree(folder)
    return outcome


def _weights(folder: Path) -> str | None:
    """A digest of what was trained, None where nothing is."""
    path = folder / "results" / "weights.safetensors"
    if not path.exists():
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(safetensors.numpy.load_file(path).items()):
        digest.update(name.encode() + tensor.tobytes())
    return digest.hexdigest()


def fill(name: str, template: Path, work: Path) -> list[str]:
    """Run a command on disks that are too small, then again when there is room; what was wrong."""
    problems = []
    for kilobytes in _DISK_KILOBYTES:
        folder = work / f"{name}-{kilobytes}k"
        folder.mkdir()
        _mount(folder, f"size={kilobytes}k")
        try:
            shutil.copytree(template, folder, dirs_exist_ok=True)
            code, printed, _ = run(COMMANDS[name], folder)
            lines = [line for line in printed.splitlines() if line.startswith("error:")]
            if "Traceback" in printed or (code != 0 and len(lines) != 1):
                problems.append(f"{kilobytes} kB: exit code {code}: {printed.strip()[-300:]}")
            print(f"{name}, {kilobytes} kB: exit code {code} {' '.join(lines)}", flush=True)
            before = complete_trials(folder)
            _mount(folder, "remount,size=500m")
            code, printed, _ = run(COMMANDS[name], folder)
            if code != 0 or "Traceback" in printed:
                problems.append(f"{kilobytes} kB, with room: exit code {code}: {printed.strip()[-300:]}")
            else:
                problems += [f"{kilobytes} kB, with room: {each}" for each in check(name, folder, before)]
        finally:
            subprocess.run(["/bin/umount", str(folder)], check=True)  # noqa: S603
    return problems


def _mount(folder: Path, options: str) -> None:
    words = ["/bin/mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(words, check=True)  # noqa: S603


def main() -> None:
    """Crash all commands, print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--folder", type=Path, required=True, help="a new folder to work in")
    parser.add_argument("--moments", type=int, default=50, help="for each command")
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--full-disk", action="store_true", help="fill disks instead of killing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file of the outcomes")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    empty, profiled = arguments.folder / "empty", arguments.folder / "profiled"
    empty.mkdir()
    (empty / "space.yaml").write_text(_SPACE)
    shutil.copytree(empty, profiled)
    outcomes = {}
    for name in arguments.commands.split(","):
        generator = random.Random(f"{arguments.seed} {name}")
        if name == "validate" and not (profiled / "results").exists():
            run(COMMANDS["profile"], profiled)
        template = profiled if name == "validate" else empty
        if arguments.full_disk:
            outcome = Outcome(problems=fill(name, template, arguments.folder))
        else:
            outcome = crash(name, template, arguments.folder, arguments.moments, generator)
        outcomes[name] = asdict(outcome)
        print(f"{name}: {outcome}", flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(outcomes, indent=1) + "\n")
    sys.exit(any(each["problems"] for each in outcomes.values()))


if __name__ == "__main__":
    main()
