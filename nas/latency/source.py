"""Where a search has its latencies from: this machine, a board over SSH, an earlier table or an estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from nas.devices.device import Target
from nas.latency.hardware import Hardware, table_without_measuring
from nas.latency.provision import Effort, measure_layers, ready_table
from nas.latency.sessions import ProfileProgress
from nas.latency.table import LatencyTable
from nas.runtimes.runtime import Runtime
from search_spaces.architecture import Architecture
from search_spaces.layers import layer_keys, reachable_layer_keys
from search_spaces.space import SearchSpace


@dataclass(frozen=True, slots=True)
class LatencySource:
    """Latencies for a search.

    Attributes:
        board: the hardware.
        runtime: what runs the networks on it.
        folder: where its table is kept.
        effort: how much to measure where something is missing.
        progress: makes progress bars for the time of a measurement.
        say: takes lines for the user.
    """

    board: Hardware
    runtime: Runtime
    folder: Path
    effort: Effort
    progress: Callable[[], AbstractContextManager[ProfileProgress]]
    say: Callable[[str], None]

    @property
    def target(self) -> Target | None:
        """Who can measure, None if nobody can from here."""
        return self.board.target(self.runtime, self.effort.seed, self.say)

    def table(self, space: SearchSpace, references: Sequence[Architecture]) -> LatencyTable:
        """A table that covers the space and the references."""
        target = self.target
        if target is None:
            keys = reachable_layer_keys(space).union(*(layer_keys(each) for each in references))
            return table_without_measuring(self.board, sorted(keys, key=str), self.runtime, self.folder)
        with self.progress() as bars:
            return ready_table(
                space,
                references,
                target,
                self.runtime,
                self.board.name,
                self.folder,
                self.effort,
                bars,
                self.say,
            )

    def measured(self, table: LatencyTable, networks: Sequence[Architecture]) -> LatencyTable:
        """The table with every layer of these networks measured, where that can be done from here."""
        keys = {key for each in networks for key, entry in table.layer_latencies(each) if entry.samples == 0}
        target = self.target
        if target is None or not keys:
            return table
        self.say(f"measuring {len(keys)} layers of the front that were predicted so far")
        with self.progress() as bars:
            return measure_layers(
                table, networks, target, self.runtime, self.folder, self.effort.rounds, bars, self.say
            )
