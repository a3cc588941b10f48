"""Whole networks on every runtime at hand: which to deploy, with which runtime, precision and threads.

All configurations of one thread count take turns in the same rounds, so a machine that changes its speed
changes it for all of them alike. Networks have random weights; what int8 costs in accuracy is not told here.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nas.devices.device import ANCHOR
from nas.measuring.conditions import cpu_model, snapshot
from nas.measuring.progress import ProfileProgress
from nas.measuring.rounds import Journal, RefusedError, Runner, Schedule, measure, steadied
from nas.runtimes.runtime import Runtime
from nas.runtimes.subject import RuntimeUnavailableError
from nas.saving import hold, markdown_text, spreadsheet_cell, write_atomically
from search_spaces.architecture import Architecture
from search_spaces.tasks import TaskNetwork

COLUMNS = ("network", "runtime", "version", "precision", "threads", "p50_ms", "p90_ms", "p99_ms", "rounds")


@dataclass(frozen=True, slots=True)
class Deployment:
    """A network as one runtime runs it.

    Attributes:
        network: its name.
        runtime: what ran it.
        version: of the runtime.
        p50_ms: median, drift of the whole machine taken out.
        p90_ms: 90th percentile of what really happened.
        p99_ms: 99th percentile of what really happened.
        rounds: steady rounds.
    """

    network: str
    runtime: Runtime
    version: str
    p50_ms: float
    p90_ms: float
    p99_ms: float
    rounds: int

    @property
    def cells(self) -> tuple[str, ...]:
        """As text, in the order of :data:`COLUMNS`."""
        runtime = self.runtime
        numbers = (f"{value:.4g}" for value in (self.p50_ms, self.p90_ms, self.p99_ms))
        return (
            spreadsheet_cell(self.network),
            runtime.name,
            self.version,
            runtime.precision,
            str(runtime.threads),
            *numbers,
            str(self.rounds),
        )


@contextmanager
def measured_deployments(
    networks: Mapping[str, Architecture | TaskNetwork],
    runtimes: Sequence[Runtime],
    folder: Path,
    rounds: int,
    seed: int,
    progress: ProfileProgress,
) -> Iterator[tuple[list[Deployment], dict[str, str]]]:
    """Time every network on every runtime; rounds are kept until the block has saved what they came to.

    Args:
        networks: by name; with the head of a task where that is what they are for.
        runtimes: with precision and threads; all must be installed.
        folder: where rounds are kept while measuring; an interrupted measurement goes on from them.
        rounds: steady rounds wanted.
        seed: of the shuffled order.
        progress: callbacks for progress bars.

    Yields:
        The deployments, and what could not be run: a reason by configuration.

    Raises:
        MeasurementError: if nothing could be run, or the machine did not hold still.
        nas.saving.HeldError: if another process measures in this folder.
    """
    with hold(folder, "the comparison"):
        found, refused, journals = _measured(networks, runtimes, folder, Schedule(rounds, seed), progress)
        yield found, refused
        for each in journals:
            each.unlink()


def _measured(
    networks: Mapping[str, Architecture | TaskNetwork],
    runtimes: Sequence[Runtime],
    folder: Path,
    schedule: Schedule,
    progress: ProfileProgress,
) -> tuple[list[Deployment], dict[str, str], list[Path]]:
    """The deployments, what could not be run, and the files of the rounds."""
    found: list[Deployment] = []
    refused: dict[str, str] = {}
    loaded: set[str] = set()
    journals: list[Path] = []
    for threads in sorted({each.threads for each in runtimes}):
        alike = [each for each in runtimes if each.threads == threads]
        configurations = {
            f"{name} {runtime.name} {runtime.precision} {threads}": (name, runtime)
            for runtime in alike
            for name in networks
        }
        versions = {each.name: each.version() for each in alike}
        ids = [each.id for each in networks.values()]
        identity: dict[str, object] = {"device": cpu_model(), "networks": ids, "versions": versions}
        journal = Journal(folder / f"partial-{threads}t.jsonl", list(configurations), identity)

        def load(label: str, configurations: Mapping[str, tuple[str, Runtime]] = configurations) -> Runner:
            name, runtime = configurations[label]
            if label not in loaded:  # later on rounds tell the progress
                loaded.add(label)
                progress.prepared(len(loaded), len(networks) * len(runtimes))
            try:
                return runtime.runner(networks[name])
            except RuntimeUnavailableError as error:
                raise RefusedError(str(error)) from error  # the others go on

        anchor = Runtime(threads=threads).runner(ANCHOR)
        precise = replace(schedule, precise=list(configurations))
        kept = measure(load, anchor, journal, precise, snapshot, progress.measured)
        p90s, p99s = np.percentile([each.samples_ms for each in kept], [90, 99], axis=0)
        p50s = np.median(steadied(kept), axis=0)
        journals.append(journal.path)
        refused |= journal.refused
        for label, p50, p90, p99 in zip(journal.names, p50s, p90s, p99s, strict=True):
            name, runtime = configurations[label]
            version = versions[runtime.name]
            found.append(Deployment(name, runtime, version, float(p50), float(p90), float(p99), len(kept)))
    return found, refused, journals


def best_of_each(deployments: Sequence[Deployment]) -> list[Deployment]:
    """The fastest deployment of each network, the fastest network first."""
    fastest: dict[str, Deployment] = {}
    for each in sorted(deployments, key=lambda each: each.p50_ms):
        fastest.setdefault(each.network, each)
    return list(fastest.values())


def save(deployments: Sequence[Deployment], folder: Path) -> None:
    """Write ``deployments.csv``, and ``deployments.md`` with a row for each network."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(each.cells for each in deployments)
    write_atomically(folder / "deployments.csv", text.getvalue())
    write_atomically(folder / "deployments.md", markdown(deployments))


def markdown(deployments: Sequence[Deployment]) -> str:
    """A row for each network, a column for each configuration: p50 in milliseconds."""
    header, *rows = matrix(deployments)
    cells = [header, *((markdown_text(name), *times) for name, *times in rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]]) + "\n"


def matrix(deployments: Sequence[Deployment]) -> list[tuple[str, ...]]:
    """Cells of :func:`markdown`, the header first; the fastest of a row is in bold."""
    configurations = list(dict.fromkeys(each.runtime for each in deployments))
    threads = {each.threads for each in configurations}
    header = [
        f"{each.name} {each.precision}" + (f" {each.threads}t" if len(threads) > 1 else "")
        for each in configurations
    ]
    p50 = {(each.network, each.runtime): each.p50_ms for each in deployments}
    rows = []
    for name in dict.fromkeys(each.network for each in deployments):
        row = [p50.get((name, each)) for each in configurations]
        fastest = min(each for each in row if each is not None)
        cells = ["–" if each is None else f"{each:.2f}" for each in row]
        rows.append((name, *(f"**{c}**" if v == fastest else c for c, v in zip(cells, row, strict=True))))
    return [("ms (p50)", *header), *rows]
