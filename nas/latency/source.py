"""Where a search has its latencies from: this machine, a board over SSH, an earlier table or an estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from nas.devices.device import Target
from nas.latency.end_to_end import TimedNetworks, time_networks
from nas.latency.hardware import Hardware, table_without_measuring
from nas.latency.plan import TableEffort
from nas.latency.provision import (
    StaleTableError,
    finish_interrupted,
    measure_layers,
    ready_table,
    staleness,
)
from nas.latency.sessions import PENDING, TABLE, Bench, NetworkRecord, load_networks
from nas.latency.table import LatencyTable
from nas.latency.transfer import Agreement, agreement, at_level_of, is_from, measured_elsewhere
from nas.latency.whole_models import with_head
from nas.measuring.progress import ProfileProgress
from nas.runtimes.runtime import Runtime
from nas.saving import hold
from search_spaces.architecture import Architecture
from search_spaces.layers import LayerKey, layer_keys, reachable_layer_keys
from search_spaces.space import SearchSpace
from search_spaces.tasks import Task, TaskError

# Enough to tell whether a machine is of the same kind; a table takes more.
_AGREEMENT_ROUNDS = 15


def keys_of(space: SearchSpace, references: Sequence[Architecture]) -> frozenset[LayerKey]:
    """Every layer that a search of a space needs, those of its references included."""
    return reachable_layer_keys(space).union(*(layer_keys(each) for each in references))


def check_timed_from_here(task: Task, board: Hardware) -> None:
    """Refuse a task's whole models on hardware that has to be carried a kit.

    Raises:
        TaskError: naming the hardware to take instead.
    """
    if not board.hosts and not board.measured_here:
        raise TaskError(
            f"search.task={task.name} times whole models: take hardware that is measured from here, "
            "hardware=host or a board over SSH (hardware.host=USER@BOARD)"
        )


@dataclass(frozen=True)
class LatencySource:
    """Latencies for a search.

    Attributes:
        board: the hardware.
        runtime: what runs the networks on it.
        folder: where its table is kept.
        effort: how much to measure where something is missing.
        rounds: steady rounds wanted.
        progress: makes progress bars for the time of a measurement.
        say: takes lines for the user.
    """

    board: Hardware
    runtime: Runtime
    folder: Path
    effort: TableEffort
    rounds: int
    progress: Callable[[], AbstractContextManager[ProfileProgress]]
    say: Callable[[str], None]

    @cached_property
    def target(self) -> Target | None:
        """Who can measure, None if nobody can from here; one for all passes, so boards are asked once."""
        return self.board.target(self.runtime, self.effort.seed, self.say)

    def table(
        self,
        space: SearchSpace,
        references: Sequence[Architecture],
        carried: LatencyTable | None = None,
    ) -> LatencyTable:
        """A table that covers the space and the references.

        Args:
            space: every layer it can reach will be in the table.
            references: so will theirs.
            carried: layers that a study began with: they stay as they are, only what they lack is added.

        Raises:
            StaleTableError: if the layers are of other hardware, or measured under other conditions.
        """
        if carried is not None:
            self._check(carried)
            entries = carried.entries
            if carried.missing(keys_of(space, references)):
                local = self.table(space, references)
                more = local.entries if is_from(carried, local) else at_level_of(carried, local)
                entries = {**more, **entries}
            return LatencyTable(carried.header, entries)
        target = self.target
        if target is None:
            keys = sorted(keys_of(space, references), key=str)
            return table_without_measuring(self.board, keys, self.runtime, self.folder)
        with self.progress() as bars:
            return ready_table(self._bench(target, bars), space, references, self.effort)

    def for_task(
        self,
        table: LatencyTable,
        task: Task | None,
        space: SearchSpace,
        references: Sequence[Architecture],
        carried: LatencyTable | None = None,
    ) -> LatencyTable:
        """The table as one of whole models: networks with a task's head instead of their classifiers.

        Args:
            table: covers the space and the references.
            task: what they are for; None for classification: the table as it is.
            space: some members are timed whole, once for each table.
            references: so are these.
            carried: what a study began with; its head stays as it is.

        Raises:
            TaskError: if whole models cannot be timed from here.
            StaleTableError: if the study was begun for another task.
        """
        if carried is not None:
            begun = carried.header.head.task if carried.header.head else None
            if begun != task:
                name = f"{begun.name} of {begun.classes} classes" if begun else "classification"
                raise StaleTableError(
                    f"the study was begun with search.task={name}: restore the setting or give the new "
                    "study another name"
                )
        if carried is not None or task is None:
            return table
        check_timed_from_here(task, self.board)
        target = self.target
        assert target is not None
        with self.progress() as bars:
            return with_head(table, task, space, references, self._bench(target, bars), self.effort.seed)

    def _check(self, carried: LatencyTable) -> None:
        """Refuse layers that a study began with on other hardware, or under other conditions."""
        header, device, version = carried.header, None, None
        if self.board.measured_here and not self.board.hosts and (target := self.target) is not None:
            device, version = target.identity()
        differences = staleness(carried, self.runtime, device, version)
        if carried.is_estimate:
            # Estimates are of other runtimes than those that will measure; they say so themselves.
            differences = []
            if (self.folder / "table.json").exists():
                self.say(
                    "the study began with estimates and keeps them: begin another for measured latencies"
                )
        if header.hardware != self.board.name:
            differences.insert(0, f"hardware {header.hardware}, not {self.board.name}")
        if differences:
            raise StaleTableError(
                f"the study was begun with latencies of {'; '.join(differences)}: "
                "restore the setting or give the new study another name"
            )

    def measured(self, table: LatencyTable, networks: Sequence[Architecture]) -> LatencyTable:
        """The table with every layer of these networks measured, where that can be done from here."""
        layers = [pair for each in networks for pair in table.layer_latencies(each)]
        keys = {key for key, entry in layers if entry.source in ("predicted", "estimated")}
        target = self.target
        if target is None:
            return table
        if not keys:
            if (self.folder / PENDING).exists() and not self.is_elsewhere(table):
                with self.progress() as bars:
                    finish_interrupted(self._bench(target, bars))
            return table
        self.say(f"measuring {len(keys)} layers of the front that were predicted so far")
        if self.is_elsewhere(table):
            with hold(self.folder, TABLE, self.say), self.progress() as bars:
                return measured_elsewhere(table, sorted(keys, key=str), self._bench(target, bars))
        with self.progress() as bars:
            return measure_layers(table, networks, self._bench(target, bars))

    def _bench(self, target: Target, bars: ProfileProgress) -> Bench:
        return Bench(target, self.runtime, self.board.name, self.folder, self.rounds, bars, self.say)

    def networks(self) -> list[NetworkRecord]:
        """Networks measured end to end for the table kept here."""
        return load_networks(self.folder) if self.folder.exists() else []

    def is_elsewhere(self, table: LatencyTable) -> bool:
        """True if a table was measured by another machine than the one kept here."""
        local = LatencyTable.load(self.folder) if (self.folder / "table.json").exists() else None
        return not is_from(table, local)

    def agreement(
        self, table: LatencyTable, carried: Sequence[NetworkRecord], journal: Path
    ) -> Agreement | None:
        """The check of a table measured elsewhere against this machine; None where that is no question.

        Args:
            table: what a shared study goes by.
            carried: networks measured for it.
            journal: folder of the rounds while measuring.

        Raises:
            StaleTableError: if it does not hold.
            nas.measuring.rounds.MeasurementError: if the machine did not hold still.
        """
        target = self.target
        if target is None or not self.is_elsewhere(table):
            return None
        self.say("the study's latencies were measured elsewhere: timing some of its networks and layers here")
        with self.progress() as bars:
            bench = replace(self._bench(target, bars), folder=journal, rounds=_AGREEMENT_ROUNDS)
            found = agreement(table, carried, bench)
        if found.error > self.board.tolerance:
            raise StaleTableError(
                f"{found}: more than hardware.tolerance={self.board.tolerance:g}; begin a study of its own "
                "for this machine"
            )
        return found

    def timed(
        self,
        table: LatencyTable,
        networks: Sequence[Architecture],
        journal: Path,
        carried: Sequence[NetworkRecord] = (),
    ) -> TimedNetworks | None:
        """Networks timed end to end, at the table's level; None where that cannot be done from here.

        Args:
            table: what the study goes by.
            networks: what to time.
            journal: folder of the rounds while measuring.
            carried: networks measured where the table was, if that was elsewhere.

        Raises:
            nas.measuring.rounds.MeasurementError: if the machine did not hold still.
        """
        target = self.target
        if target is None or not table.header.sessions or not networks:
            return None
        self.say(f"timing {len(networks)} networks end to end")
        known = carried if self.is_elsewhere(table) else self.networks()
        with self.progress() as bars:
            task = table.header.head.task if table.header.head else None
            bench = replace(self._bench(target, bars), folder=journal)
            return time_networks(networks, table, bench, known, task)
