"""Hardware that is not this machine: who measures it, and what a search does before anybody has.

A board reached over SSH is measured like this machine. One without network is sent a kit and sends back
a result. While there is no table, boards with a shipped estimate answer with that, labelled
``estimated`` wherever it appears; for the others a search says how to measure.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.devices.device import LocalTarget, Target
from nas.devices.kit import KitSettings, Result
from nas.devices.ssh import Board, SshTarget
from nas.latency.preset import EstimatedLayers
from nas.latency.provision import load_table, profile_command
from nas.latency.sessions import (
    NETWORKS,
    TABLE,
    add_session,
    complete,
    fill_gaps,
    load_networks,
    networks_text,
    session_header,
)
from nas.latency.table import ESTIMATE, Entry, LatencyTable, TableHeader
from nas.measuring.conditions import AffinityError, check_cores, usable_cores
from nas.runtimes.runtime import Runtime
from nas.saving import hold, write_together
from nas.shell import board_lines
from search_spaces.errors import InputError
from search_spaces.layers import LayerKey


class NoTableError(InputError):
    """A board that nobody has measured and that no estimate is shipped for."""


class NothingNewError(InputError):
    """A result that was imported before."""


def check_threads(setting: str, threads: int, cores: int) -> None:
    """Refuse more threads than there are cores for them.

    Args:
        setting: where they were asked for.
        threads: wanted.
        cores: that may be used.

    Raises:
        InputError: naming the setting.
    """
    if threads > cores:
        raise InputError(
            f"{setting}={threads}, but this process may use {cores} core{'s' if cores > 1 else ''}: threads "
            "would wait for each other"
        )


@dataclass(frozen=True, slots=True)
class Hardware:
    """A device to be measured, as ``conf/hardware`` describes it.

    Attributes:
        name: what tables and reports call it.
        measured_here: whether it is this machine.
        hosts: boards reached over SSH; none for one without network.
        python: the boards' interpreter.
        estimate: name of a shipped estimate, None where there is none.
        temperature_limit_c: boards pause measuring above this.
        tolerance: how much boards that share the work may differ.
        affinity: numbers of the cores to measure on; none: all.
    """

    name: str
    measured_here: bool
    hosts: tuple[str, ...] = ()
    python: str = "python3"
    estimate: str | None = None
    temperature_limit_c: float = 75.0
    tolerance: float = 0.05
    affinity: tuple[int, ...] = ()

    def kit_settings(self, runtime: Runtime, rounds: int, seed: int) -> KitSettings:
        """The settings a kit for this hardware is measured by.

        Args:
            runtime: what runs the layers.
            rounds: steady rounds wanted.
            seed: of order and weights.
        """
        return KitSettings(self.name, runtime, rounds, seed, self.temperature_limit_c, self.affinity)

    def target(self, runtime: Runtime, seed: int, say: Callable[[str], None]) -> Target | None:
        """Who measures this hardware, None if it has to be carried a kit.

        Args:
            runtime: what runs the layers.
            seed: of the order of measuring.
            say: takes lines from the boards, and what is given up while measuring here.

        Raises:
            InputError: if a core to measure on is not there, or there are fewer than threads wanted.
            nas.runtimes.subject.RuntimeUnavailableError: if the runtime is not installed, or not for boards.
        """
        if self.hosts:
            runtime.check_board()
            return SshTarget(
                tuple(Board(host, self.python, runtime.name) for host in self.hosts),
                self.kit_settings(runtime, rounds=1, seed=seed),
                self.tolerance,
                lambda host, line: say(f"{host}: {line}"),
            )
        if not self.measured_here:
            return None
        runtime.version()  # before any progress is shown
        try:
            check_cores(self.affinity)
        except AffinityError as error:
            raise InputError(str(error)) from None
        check_threads("hardware.threads", runtime.threads, len(set(self.affinity)) or usable_cores())
        return LocalTarget(runtime, seed, self.affinity, say)

    def how_to_measure(self, runtime: Runtime) -> str:
        """The commands that make a table for this hardware."""
        if self.measured_here:
            return profile_command(self.name, runtime)
        return board_lines(self.name, runtime.name, runtime.precision, runtime.threads)


def import_result(
    result: Result,
    runtime: Runtime,
    hardware: str,
    folder: Path,
    predicted: Sequence[LayerKey],
    table: LatencyTable | None = None,
) -> LatencyTable:
    """Turn what a board sent back into a table, or extend the one there is.

    Args:
        result: what was measured.
        runtime: what ran it.
        hardware: name of the hardware config.
        folder: where the table is kept.
        predicted: layers to predict where the result does not hold them.
        table: the table to extend.

    Raises:
        NothingNewError: if the table holds all of it already.
        HeldError: if another process is measuring for this table.
        SaveError: if the table cannot be written; the one there is stays as it is.
    """
    with hold(folder, TABLE):
        imported = (
            {(each.get("kit"), each.get("group")) for each in table.header.sessions} if table else set()
        )
        groups = [each for each in result.groups if (result.header.kit, each.number) not in imported]
        if not groups:
            raise NothingNewError(f"everything in this result is in the table of {hardware} already")
        networks = load_networks(folder) if table is not None else []
        header = session_header(hardware, runtime, result.device, result.runtime_version)
        samples = {}
        for group in groups:
            table, networks = add_session(table, networks, group.measurement, header)
            samples[f"samples-{len(table.header.sessions)}.jsonl"] = group.journal
        assert table is not None
        table = complete(table, predicted, networks)
        write_together(folder, table.files() | {NETWORKS: networks_text(networks)} | samples)
        return table


def table_without_measuring(
    hardware: Hardware,
    keys: Sequence[LayerKey],
    runtime: Runtime,
    folder: Path,
) -> LatencyTable:
    """The latencies a search can use while the board is not within reach.

    Args:
        hardware: the board.
        keys: layers wanted.
        runtime: what runs them.
        folder: where a table would be kept.

    Returns:
        The table made earlier, with layers it lacks predicted; or one that is estimated throughout.

    Raises:
        NoTableError: if there is neither table nor estimate, naming the commands that make a table.
    """
    table = load_table(folder, hardware.name, runtime)
    if table is not None:
        return fill_gaps(table, table.missing(keys))
    if hardware.estimate is None:
        raise NoTableError(
            f"there is no latency table for hardware={hardware.name} yet, and no estimate for it; "
            f"measure one: {hardware.how_to_measure(runtime)}"
        )
    return estimated_table(hardware, keys, runtime)


def estimated_table(hardware: Hardware, keys: Sequence[LayerKey], runtime: Runtime) -> LatencyTable:
    """A table of estimates; it is never written where measured tables are.

    Args:
        hardware: has a shipped estimate.
        keys: the layers wanted.
        runtime: must be one that the estimate is for.

    Raises:
        NoTableError: if the estimate is for other threads or another precision.
    """
    assert hardware.estimate is not None
    estimate = EstimatedLayers.load(hardware.estimate)
    if (runtime.precision, runtime.threads) != (estimate.precision, estimate.threads):
        raise NoTableError(
            f"the estimate for {hardware.estimate} is for {estimate.precision} and {estimate.threads} "
            f"thread, not for {runtime.precision} and {runtime.threads}; measure instead: "
            f"{hardware.how_to_measure(runtime)}"
        )
    error = estimate.cross_validation.mean_absolute_percent
    header = TableHeader(
        hardware=hardware.name,
        device=(
            f"{estimate.board} (ESTIMATED, {error:.0f} % off, "
            f"at worst {estimate.cross_validation.worst_percent:.0f} %)"
        ),
        runtime="/".join(estimate.runtimes),
        runtime_version="(published latencies)",
        precision=estimate.precision,
        threads=estimate.threads,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        statistic=ESTIMATE,
    )
    entries = {}
    for key in keys:
        latency_ms = estimate.layer_ms(key)
        entries[key] = Entry(latency_ms, latency_ms * error / 100, 0, "estimated")
    return LatencyTable(header, entries)
