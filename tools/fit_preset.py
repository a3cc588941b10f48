"""``python -m tools.fit_preset data=FOLDER``: fit the shipped estimates of boards from published latencies.

One physical model for Arm cores: a latency is work times rates, none of them negative. The *shape* (the
rates' proportions) is fitted jointly to three tables of blocks and to whole networks in many pairs of device
and runtime, each pair with a level of its own; each table and each runtime weighs the same. A board's
*level* comes from networks timed on it. With ``blocks=`` one table of FBNet blocks of one's own is fitted
instead, and ``device=``, ``board=``, ``source=`` say whose it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING
from scipy.optimize import least_squares, lsq_linear

from nas.command import command
from nas.console import console, print_summary
from nas.latency.preset import EstimatedLayers, EstimateError, LeftOutErrors
from search_spaces.layers import layer_keys
from search_spaces.references import FAMILIES, reference
from tools.preset_sources import Group, Timed, read_fbnet_blocks, read_networks, read_note10_blocks

# Where the joint fit starts and, weakly, what it is held to (ms per million; per operator for the last):
# the rates of a Cortex-A72 at its peak for products, at its memory's for bytes.
_START = (0.17, 0.67, 0.5, 0.27, 0.2, 0.004)
_HELD = 0.02
_OUTLIER = 0.1  # log error from which on a network counts for less
RUNTIMES = ("ncnn", "Paddle-Lite", "XNNPACK", "TF-Lite", "litert")

Rates = NDArray[np.float64]


@dataclass
class FitConfig:
    """Everything ``python -m tools.fit_preset`` can be told.

    Attributes:
        data: folder of the published latencies.
        blocks: CSV of FBNet blocks of one device, to fit that device alone.
        device: with ``blocks``: name of the estimate.
        board: with ``blocks``: what the device is.
        source: with ``blocks``: where its latencies are from, and their licence.
        output: folder for the files of the estimates, null to print them only.
    """

    data: str | None = None
    blocks: str | None = None
    device: str = MISSING
    board: str = MISSING
    source: str = MISSING
    output: str | None = None


def fit_rates(rows: Sequence[Timed]) -> Rates:
    """Rates of one table: non-negative least squares on relative errors."""
    matrix = np.array([each.work for each in rows])
    latencies = np.array([each.latency_ms for each in rows])
    found = lsq_linear(matrix / latencies[:, None], np.ones(len(rows)), bounds=(0, np.inf)).x
    return np.asarray(found, dtype=np.float64)


def fit_shape(tables: Sequence[Sequence[Timed]], groups: Sequence[Group]) -> Rates:
    """Rates shared by all tables and groups, each of which has a level of its own.

    Args:
        tables: block tables, each of one device.
        groups: networks; a runtime's groups together weigh as much as a table.
    """
    runtimes = [group.runtime for group in groups]
    shares = [(rows, 1.0) for rows in tables]
    shares += [(group.rows, 1 / runtimes.count(group.runtime)) for group in groups]
    parts = [
        (
            np.array([each.work for each in rows]),
            np.log([each.latency_ms for each in rows]),
            np.sqrt(share / len(rows)),
        )
        for rows, share in shares
    ]
    start = np.log(_START)

    def residuals(logarithms: Rates) -> Rates:
        rates = np.exp(logarithms)
        found = [_HELD * (logarithms - start)]
        for matrix, truth, weight in parts:
            error = np.log(np.maximum(matrix @ rates, 1e-9)) - truth
            found.append(weight * (error - error.mean()))
        return np.concatenate(found)

    return np.asarray(np.exp(least_squares(residuals, start, loss="soft_l1", f_scale=_OUTLIER).x))


def level(rows: Sequence[Timed], shape: Rates) -> float:
    """The factor from a shape's latencies to these, in the geometric mean."""
    return float(np.exp(np.mean([np.log(each.latency_ms / (each.work @ shape)) for each in rows])))


def left_out_errors(rows: Sequence[Timed], shape: Rates) -> Rates:
    """Signed relative error of each network, the level from the others."""
    return np.array(
        [
            level([*rows[:index], *rows[index + 1 :]], shape) * (each.work @ shape) / each.latency_ms - 1
            for index, each in enumerate(rows)
        ]
    )


def table_errors(rows: Sequence[Timed]) -> Rates:
    """Signed relative error of each block when all of its name are left out of the fit."""
    errors = np.empty(len(rows))
    for name in {each.name for each in rows}:
        rates = fit_rates([each for each in rows if each.name != name])
        for index, each in enumerate(rows):
            if each.name == name:
                errors[index] = each.work @ rates / each.latency_ms - 1
    return errors


def _described(
    errors: Rates, left_out: str = "", networks: int | None = None, blocks: int | None = None
) -> LeftOutErrors:
    absolute = 100 * np.abs(errors)
    return LeftOutErrors(
        left_out=left_out,
        networks=networks,
        blocks=blocks,
        mean_absolute_percent=round(float(absolute.mean()), 1),
        worst_percent=round(float(absolute.max()), 1),
    )


def table_estimate(
    device: str, board: str, runtimes: list[str], source: str, licence: str, rows: Sequence[Timed]
) -> EstimatedLayers:
    """The estimate of a device with a table of blocks of its own.

    Args:
        device: name of the board.
        board: for people.
        runtimes: that were timed.
        source: of the latencies.
        licence: of the source.
        rows: blocks with their latencies.
    """
    validation = _described(table_errors(rows), "every block of one shape at a time", blocks=len(rows))
    return EstimatedLayers(
        device=device,
        coefficients=tuple(fit_rates(rows).tolist()),
        board=board,
        runtimes=tuple(runtimes),
        source=source,
        licence=licence,
        cross_validation=validation,
    )


_LICENCE = "these coefficients are our own fit; sources MIT, BSD-3-Clause, Apache-2.0"
_SHAPE = "shape: joint fit to three block tables and {groups} pairs of device and runtime"
_BOARDS = {
    "rpi3": ("Raspberry Pi 3 Model B+", "Raspberry Pi 3 Model B+, Cortex-A53 at 1.4 GHz"),
    "rpi4": ("Raspberry Pi 4 Model B", "Raspberry Pi 4 Model B, Cortex-A72 at 1.8 GHz"),
}
# Cortex-A76 phones whose source states the core; the Raspberry Pi 5 has that core at 2.4 GHz.
_A76 = {"Xiaomi MI9": 2.84, "Huawei Mate 30": 2.86, "Huawei Mate 20": 2.6, "LG-G8": 2.84, "note10": 2.84}
_PI5_GHZ = 2.4


def board_estimate(name: str, tables: Sequence[Sequence[Timed]], groups: Sequence[Group]) -> EstimatedLayers:
    """The estimate of a board with networks timed in ncnn: the joint shape at the board's level.

    Args:
        name: of the board.
        tables: blocks with latencies, a table each.
        groups: networks by device and runtime.
    """
    start, board = _BOARDS[name]
    (own,) = [group for group in groups if group.runtime == "ncnn" and group.device.startswith(start)]
    without = fit_shape(tables, [group for group in groups if group.runtime != own.runtime])
    shape = fit_shape(tables, groups)
    validation = _described(
        left_out_errors(own.rows, without),
        "each network: level from the others on this board, shape from other runtimes",
        networks=len(own.rows),
    )
    return EstimatedLayers(
        device=name,
        coefficients=tuple((shape * level(own.rows, shape)).tolist()),
        board=board,
        runtimes=RUNTIMES,
        source=f"{_SHAPE.format(groups=len(groups))}; level: {len(own.rows)} networks, ncnn, {own.device}",
        licence=_LICENCE,
        cross_validation=validation,
    )


def pi5_estimate(tables: Sequence[Sequence[Timed]], groups: Sequence[Group]) -> EstimatedLayers:
    """The Raspberry Pi 5, on which nobody published fp32: five phones with its core, by clock."""
    phones = [
        (group, ghz)
        for group in groups
        for start, ghz in _A76.items()
        if group.device.startswith(start) and group.runtime != "ncnn"
    ]

    def at_one_ghz(found: Sequence[tuple[Group, float]], shape: Rates) -> float:
        return float(np.exp(np.mean([np.log(level(group.rows, shape) * ghz) for group, ghz in found])))

    errors = []
    for group, ghz in phones:
        shape = fit_shape(tables, [each for each in groups if each.runtime != group.runtime])
        others = [phone for phone in phones if phone[0] is not group]
        scale = at_one_ghz(others, shape) / ghz
        errors += [scale * (each.work @ shape) / each.latency_ms - 1 for each in group.rows]
    shape = fit_shape(tables, groups)
    validation = _described(
        np.array(errors),
        "each phone: level from the others by clock, shape from a fit without its runtime; nothing was "
        "measured on a Raspberry Pi 5",
        networks=len(errors),
    )
    names = ", ".join(sorted(group.device.split(",")[0] for group, _ in phones))
    return EstimatedLayers(
        device="rpi5",
        coefficients=tuple((shape * at_one_ghz(phones, shape) / _PI5_GHZ).tolist()),
        board="Raspberry Pi 5, Cortex-A76 at 2.4 GHz",
        runtimes=RUNTIMES,
        source=f"{_SHAPE.format(groups=len(groups))}; level: phones with its core, by clock ({names})",
        licence=_LICENCE,
        cross_validation=validation,
    )


def fit_all(folder: Path) -> tuple[list[EstimatedLayers], dict[str, str]]:
    """All shipped estimates, and the error of the joint shape for each runtime when it is left out."""
    note10 = read_note10_blocks(folder / "note10_layers.csv")
    tables = [
        note10,
        read_fbnet_blocks(folder / "pixel3_fbnet_blocks.csv"),
        read_fbnet_blocks(folder / "fbnet_raspi4_blocks.csv"),
    ]
    groups = read_networks(folder)
    rows = {}
    for runtime in sorted({group.runtime for group in groups}):
        shape = fit_shape(tables, [group for group in groups if group.runtime != runtime])
        errors = np.concatenate(
            [left_out_errors(group.rows, shape) for group in groups if group.runtime == runtime]
        )
        found = _described(errors)
        rows[f"{runtime} left out"] = (
            f"{found.mean_absolute_percent} % mean, {found.worst_percent} % worst of {len(errors)} networks"
        )
    estimates = [
        table_estimate(
            "note10",
            "Samsung Galaxy Note10, one big core",
            ["TF-Lite", "litert"],
            "once-for-all, latency_table@note10, distinct blocks at 160 to 224 px; TF-Lite of 2019",
            "MIT; these coefficients are our own fit",
            note10,
        ),
        board_estimate("rpi3", tables, groups),
        board_estimate("rpi4", tables, groups),
        pi5_estimate(tables, groups),
    ]
    return estimates, rows


def main(config: FitConfig) -> None:
    """Fit, print rates and errors, write the files where they are wanted."""
    if (config.data is None) == (config.blocks is None):
        raise EstimateError("say data=FOLDER for the shipped estimates, or blocks=CSV for one of your own")
    if config.data is not None:
        estimates, rows = fit_all(Path(config.data))
    else:
        blocks = read_fbnet_blocks(Path(str(config.blocks)))
        estimates = [
            table_estimate(
                config.device, config.board, ["TF-Lite"], config.source, "as its source says", blocks
            )
        ]
        rows = {}
    for estimate in estimates:
        console.print_json(estimate.to_json())
        latencies = ", ".join(
            f"{name} {sum(estimate.layer_ms(key) for key in layer_keys(reference(name))):.1f}"
            for name in FAMILIES
        )
        rows[estimate.device] = f"{latencies} ms (estimated)"
        if config.output is not None:
            output = Path(config.output) / f"{estimate.device}.json"
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(estimate.to_json(), encoding="utf-8")
    next_step = f"python -m nas.search hardware={estimates[-1].device}"
    print_summary("estimates", rows, next_step if config.output else "again with output=FOLDER to keep them")


if __name__ == "__main__":
    command("fit_preset", FitConfig, main)
