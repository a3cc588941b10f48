"""``python -m tools.preset_adaptation table=FOLDER``: how few measured layers adapt a preset to a device.

Takes a measured table, pretends to know only 10, 30, 100 and 300 of its layers, and compares what the
adapted estimate says of the others with what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING
from rich.table import Table

from nas.command import command
from nas.console import console, print_summary
from nas.latency.preset import EstimatedLayers, adaptation_errors
from nas.latency.table import LatencyTable


@dataclass
class AdaptationConfig:
    """Everything ``python -m tools.preset_adaptation`` can be told.

    Attributes:
        table: folder of a measured latency table.
        estimate: name of a shipped estimate.
        counts: numbers of layers to adapt with.
        draws: random choices of layers to average over.
    """

    table: str = MISSING
    estimate: str = "rpi4"
    counts: list[int] = field(default_factory=lambda: [10, 30, 100, 300])
    draws: int = 5


def main(config: AdaptationConfig) -> None:
    """Print the error on layers kept aside against the number of layers used."""
    table = LatencyTable.load(Path(config.table))
    measured = {key: each.latency_ms for key, each in table.entries.items() if each.source == "measured"}
    shown = Table("layers", "adapted", "one factor only", title=table.header.title, title_justify="left")
    estimate = EstimatedLayers.load(config.estimate)
    for error in adaptation_errors(estimate, measured, config.counts, config.draws):
        shown.add_row(str(error.layers), f"{error.adapted_percent:.1f} %", f"{error.factor_percent:.1f} %")
    console.print(shown)
    rows = {
        "errors": f"mean absolute, of the other layers of {len(measured):,}; {config.draws} random choices",
        "table": config.table,
    }
    print_summary(
        f"adapting the estimate of {config.estimate}",
        rows,
        f"python -m nas.profile hardware={table.header.hardware} profile.max_keys=30",
    )


if __name__ == "__main__":
    command("preset_adaptation", AdaptationConfig, main)
