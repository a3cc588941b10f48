"""``python -m tools.latency_benchmark``: how true tables are, with every layer measured and with a thousand.

One interleaved measurement of layers and networks serves both questions. The correction from layers to
networks is fitted on random members of the space and on V1 at other widths; all figures are of networks
kept aside, every reference at several widths and resolutions among them.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nas.assembly import runtime_of
from nas.command import command
from nas.console import console, measuring_progress, print_summary
from nas.devices.device import LocalTarget
from nas.latency.calibration import ErrorSummary
from nas.latency.plan import Plan, TableEffort, make_plan
from nas.latency.provision import reference_architectures
from nas.latency.sessions import (
    Bench,
    NetworkRecord,
    features_of,
    fill_gaps,
    fitted_calibration,
    load_networks,
    profile,
)
from nas.latency.table import LatencyTable, session_number
from nas.latency.validation import fresh_networks
from nas.runtimes.runtime import Runtime
from nas.runtimes.subject import Precision, graph
from nas.saving import write_atomically
from nas.settings import Chosen, HardwareConfig, RuntimeConfig
from search_spaces.architecture import Architecture
from search_spaces.layers import layer_keys
from search_spaces.references import FAMILIES, reference
from search_spaces.space import SearchSpace

_WIDTHS = ("", "_050", "_075")
# Widths whose channels are multiples of 8, like those judged: other counts keep ONNX Runtime from its
# blocked layout, and V1 at 0.35, 0.6 or 0.9 says nothing about V1 at 0.5, 0.75 or 1 (10 % too slow).
_CALIBRATING_V1 = ("mobilenet_v1_025", "mobilenet_v1_125", "mobilenet_v1_150")


@dataclass
class BenchmarkSettings:
    """The networks, layers and rounds to measure.

    Attributes:
        kept_aside: networks the figures are of, references included.
        calibrating: networks the correction is fitted on: random members, and V1 at widths not judged.
        max_keys: layers measured in the second question; the rest is predicted.
        rounds: steady rounds.
        seed: of the random members.
        folder: where the samples and the result go.
    """

    kept_aside: int = 200
    calibrating: int = 110
    max_keys: int = 1000
    rounds: int = 48
    seed: int = 7
    folder: str = "results/latency-benchmark"


@dataclass
class BenchmarkConfig:
    """Everything ``python -m tools.latency_benchmark`` can be told."""

    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    search_space: Chosen = None
    benchmark: BenchmarkSettings = field(default_factory=BenchmarkSettings)


def main(config: BenchmarkConfig) -> None:
    """Measure, answer both questions, write the figures with their conditions."""
    settings = config.benchmark
    hardware = config.hardware.name
    runtime = runtime_of(config.runtime)
    space = SearchSpace.from_dict(config.search_space)
    kept = _kept_aside(space, settings)
    calibrating = _calibrating(space, settings, kept)
    references = [*reference_architectures(space).values(), *calibrating[: len(_CALIBRATING_V1)]]
    subset = make_plan(space, references, TableEffort(settings.max_keys, 0, settings.seed)).keys
    keys = dict.fromkeys([*subset, *(key for each in (*kept, *calibrating) for key in layer_keys(each))])
    folder = Path(settings.folder) / f"{runtime.name}-{runtime.precision}-{runtime.threads}t"
    plan = Plan(tuple(keys), (*kept, *calibrating))
    console.print(f"measuring {len(keys):,} layers and {len(plan.networks)} networks")
    with measuring_progress() as bars:
        target = LocalTarget(runtime, settings.seed)
        table = profile(Bench(target, runtime, hardware, folder, settings.rounds, bars), plan)
    records = {record.architecture: record for record in load_networks(folder)}
    chosen = [records[each] for each in calibrating]
    judged = [records[each] for each in kept]
    few = LatencyTable(table.header, {key: table.entries[key] for key in subset})
    few = fill_gaps(few, list(keys))
    rows = {
        "every layer measured": _judge(table, chosen, judged),
        f"{settings.max_keys:,} measured, the rest predicted": _judge(few, chosen, judged),
    }
    text = _markdown(rows, table, few, settings, runtime, kept, records)
    write_atomically(folder.with_suffix(".md"), text)
    shown = {"device": table.header.title, **{name: str(error[1]) for name, error in rows.items()}}
    shown["file"] = str(folder.with_suffix(".md"))
    print_summary(
        f"latency of {len(kept)} networks kept aside", shown, f"python -m nas.profile hardware={hardware}"
    )


def _kept_aside(space: SearchSpace, settings: BenchmarkSettings) -> list[Architecture]:
    """Every reference at three widths and each resolution from 128 on, then random members."""
    resolutions = sorted((side for side in space.resolutions if side >= 128), reverse=True)
    found = [
        architecture
        for width in _WIDTHS
        for side in resolutions
        for architecture in reference_architectures(space, [name + width for name in FAMILIES], side).values()
    ][: settings.kept_aside // 2]
    wide = space.restricted(resolutions)
    return found + fresh_networks(wide, settings.kept_aside - len(found), settings.seed, found)


def _calibrating(
    space: SearchSpace, settings: BenchmarkSettings, kept: list[Architecture]
) -> list[Architecture]:
    """Random members, and V1 at widths that are not judged: the space has no blocks like V1's."""
    first_version = [
        architecture
        for side in reversed(space.resolutions)
        for architecture in reference_architectures(space, _CALIBRATING_V1, side).values()
    ]
    members = settings.calibrating - len(first_version)
    return first_version + fresh_networks(space, members, settings.seed + 1, kept)


def _judge(
    table: LatencyTable, calibrating: list[NetworkRecord], judged: list[NetworkRecord]
) -> tuple[ErrorSummary, ErrorSummary]:
    """Errors on networks kept aside: of the plain sums, and calibrated."""
    fitted = fitted_calibration(table, calibrating)
    features = features_of(table, [each.architecture for each in judged])
    measured = np.array([record.latency_ms for record in judged])
    predicted = features @ np.array(fitted.coefficients)
    return ErrorSummary.of(features[:, 0], measured), ErrorSummary.of(predicted, measured)


def _markdown(
    rows: dict[str, tuple[ErrorSummary, ErrorSummary]],
    table: LatencyTable,
    few: LatencyTable,
    settings: BenchmarkSettings,
    runtime: Runtime,
    kept: list[Architecture],
    records: Mapping[Architecture, NetworkRecord],
) -> str:
    header = table.header
    preparing_s = sum(session_number(each, "preparing_s") for each in header.sessions)
    measuring_s = sum(session_number(each, "measuring_s") for each in header.sessions)
    subjects = sum(session_number(each, "subjects") for each in header.sessions)
    discarded = sum(session_number(each, "discarded_rounds") for each in header.sessions)
    references = len(FAMILIES) * len(_WIDTHS) * len({each.resolution for each in kept})
    lines = [
        f"# Latency benchmark: {header.title}",
        "",
        f"Command: `python -m tools.latency_benchmark runtime={runtime.name} "
        f"runtime.precision={runtime.precision} benchmark.kept_aside={settings.kept_aside} "
        f"benchmark.calibrating={settings.calibrating}`, "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}. {len(kept)} networks kept aside "
        f"({min(len(kept) // 2, references)} of them MobileNets), correction fitted on "
        f"{settings.calibrating} others (random members, V1 at other widths), {settings.rounds} rounds.",
        "",
        "| layers | prediction | mean error | bias | within 5 % | within 10 % | worst | tau | rho |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, errors in rows.items():
        for label, error in zip(("plain sum", "calibrated"), errors, strict=True):
            lines.append(
                f"| {name} | {label} | {error.mape:.2%} | {error.bias:+.2%} | {error.within_5_percent:.1%} | "
                f"{error.within_10_percent:.1%} | {error.worst:.1%} | {error.kendall_tau:.4f} | "
                f"{error.spearman_rho:.4f} |"
            )
    lines += [
        "",
        f"- Predicted layers: {few.header.gap_filling.get('mean_error', 0):.1%} mean error in "
        "cross-validation.",
        "- Statistic: mean of the fastest two thirds of the rounds. Rounds measured again because the anchor "
        f"moved: {discarded:.0f}.",
        f"- Cost: {subjects:,.0f} layers and networks in {preparing_s + measuring_s:.0f} s, "
        f"{subjects / (preparing_s + measuring_s):.1f} a second with all {settings.rounds} rounds. "
        f"{measuring_s / (preparing_s + measuring_s):.0%} of the time ({measuring_s:.0f} s) is measuring, "
        f"the rest ({preparing_s:.0f} s) building graphs and sessions.",
        "",
        *_family_lines(records, runtime),
    ]
    return "\n".join(lines) + "\n"


def _family_lines(records: Mapping[Architecture, NetworkRecord], runtime: Runtime) -> list[str]:
    """The MobileNets among the networks measured, at the largest resolution: size of the file and latency."""
    side = max(architecture.resolution for architecture in records)
    precisions: dict[Precision, None] = dict.fromkeys(("fp32", runtime.precision))
    lines = [
        f"| {side} px | {' | '.join(f'{each} MB' for each in precisions)} | p50 ms | p90 ms |",
        "|---" * (3 + len(precisions)) + "|",
    ]
    for name in FAMILIES:
        record = records.get(reference(name, side))
        if record is not None:
            sizes = (graph(record.architecture, each).ByteSize() / 1e6 for each in precisions)
            cells = (*(f"{size:.1f}" for size in sizes), f"{record.p50_ms:.2f}", f"{record.p90_ms:.2f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    command("latency_benchmark", BenchmarkConfig, main)
