"""``python -m tools.preset_adaptation table=FOLDER``: how few measured layers tell the others of a device.

Takes a measured table, pretends to know only some of its layers, and compares what is predicted of the
others with what was measured; beside it a shipped estimate with one factor for the device and nothing else.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from omegaconf import MISSING
from rich.table import Table

from nas.command import command
from nas.console import console, print_summary
from nas.latency.layer_predictor import LayerPredictor
from nas.latency.preset import EstimatedLayers
from nas.latency.table import MAX_BYTES, LatencyTable, TableError
from search_spaces.gate import Gate
from search_spaces.layers import LayerKey


@dataclass
class AdaptationConfig:
    """Everything ``python -m tools.preset_adaptation`` can be told.

    Attributes:
        table: folder of a measured latency table, or a CSV of layers (``key``, ``mean_ms``).
        estimate: name of a shipped estimate, for comparison.
        counts: numbers of layers to know.
        draws: random choices of layers to average over.
    """

    table: str = MISSING
    estimate: str = "rpi4"
    counts: list[int] = field(default_factory=lambda: [10, 30, 100, 300])
    draws: int = 5


@dataclass(frozen=True, slots=True)
class LeftOutErrors:
    """The errors of predicting layers that were not measured.

    Attributes:
        layers: number of measured layers used.
        predicted_percent: mean absolute error of :class:`LayerPredictor` on the others.
        worst_percent: the largest of those errors.
        factor_percent: mean absolute error of the estimate with one factor for all layers.
    """

    layers: int
    predicted_percent: float
    worst_percent: float
    factor_percent: float


def adaptation_errors(
    estimate: EstimatedLayers,
    measured_ms: Mapping[LayerKey, float],
    counts: Sequence[int],
    draws: int = 5,
    seed: int = 0,
) -> list[LeftOutErrors]:
    """Errors against the number of measured layers, on layers kept aside.

    Args:
        estimate: what is scaled by one factor.
        measured_ms: a large measured table of the device.
        counts: numbers of layers to know; those that leave fewer than ten are dropped.
        draws: random choices of layers to average over.
        seed: of those choices.
    """
    keys = sorted(measured_ms, key=str)
    truth = np.array([measured_ms[key] for key in keys])
    prior = np.array([estimate.layer_ms(key) for key in keys])
    random = np.random.default_rng(seed)
    result = []
    for count in (count for count in counts if count <= len(keys) - 10):
        errors, scaled = [], []
        for _ in range(draws):
            order = random.permutation(len(keys))
            used, aside = order[:count], order[count:]
            found = LayerPredictor({keys[index]: truth[index] for index in used}).predict(
                [keys[index] for index in aside]
            )
            predicted = np.array([found[keys[index]].latency_ms for index in aside])
            errors.append(np.abs(predicted / truth[aside] - 1))
            factor = np.median(truth[used] / prior[used])
            scaled.append(np.abs(factor * prior[aside] / truth[aside] - 1))
        together = 100 * np.concatenate(errors)
        result.append(
            LeftOutErrors(
                count,
                float(together.mean()),
                float(together.max()),
                100 * float(np.concatenate(scaled).mean()),
            )
        )
    return result


def main(config: AdaptationConfig) -> None:
    """Print the error on layers kept aside against the number of layers used."""
    title, measured = _measured(Path(config.table))
    heads = ("layers", "predicted", "worst", "one factor only")
    shown = Table(*heads, title=title, title_justify="left")
    estimate = EstimatedLayers.load(config.estimate)
    for error in adaptation_errors(estimate, measured, config.counts, config.draws):
        percents = (error.predicted_percent, error.worst_percent, error.factor_percent)
        shown.add_row(str(error.layers), *(f"{percent:.1f} %" for percent in percents))
    console.print(shown)
    rows = {
        "errors": f"mean absolute, of the other layers of {len(measured):,}; {config.draws} random choices",
        "table": config.table,
    }
    print_summary(
        f"layers predicted from few, and the estimate of {config.estimate}",
        rows,
        f"python -m nas.profile hardware={config.estimate} hardware.host=USER@BOARD profile.max_keys=30",
    )


def _measured(path: Path) -> tuple[str, dict[LayerKey, float]]:
    """The title of a measured table, and latencies in milliseconds by layer.

    Args:
        path: folder of a latency table, or a CSV with the columns ``key`` and ``mean_ms``.

    Raises:
        InputError: if it is neither.
    """
    if path.suffix != ".csv":
        table = LatencyTable.load(path)
        entries = table.entries.items()
        return table.header.title, {
            key: each.latency_ms for key, each in entries if each.source == "measured"
        }
    gate = Gate(str(path), TableError)
    rows = list(csv.DictReader(io.StringIO(gate.text(path, MAX_BYTES))))
    with gate.reading():
        return path.stem, {LayerKey.parse(row["key"]): float(row["mean_ms"]) for row in rows if row["key"]}


if __name__ == "__main__":
    command("preset_adaptation", AdaptationConfig, main)
