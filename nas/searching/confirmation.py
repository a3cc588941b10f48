"""After the trials: what a study recommends is measured, and what turns out not to run is left out."""

from __future__ import annotations

from collections.abc import Mapping

import optuna

from nas.console import console, search_progress, warn
from nas.foreign.network import ForeignNetworkError
from nas.latency.table import LatencyTable
from nas.measuring.rounds import MeasurementError
from nas.page.reading import report_of
from nas.page.report_data import Report
from nas.quantities import latency_text
from nas.searching.request import SearchRequest
from nas.searching.timing import FRONT_PASSES, carried_networks, foreign_journal, measured, time_foreign
from nas.study.netadapt import refine
from nas.study.problem import Problem
from nas.study.provenance import EndToEnd
from nas.study.published import publish
from nas.study.trial import KnownLatency, leave_out, remeasure
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.layers import LayerKey, layer_keys


def shrink(study: optuna.Study, problem: Problem, request: SearchRequest) -> None:
    """Shrink a network of the study to a latency by NetAdapt; every network on the way becomes a trial.

    Args:
        study: whose front is the choice of networks to begin with.
        problem: what it solves.
        request: the network to begin with, and the latency to get to.

    Raises:
        InputError: if the network to begin with is not there.
    """
    settings = request.settings
    target_ms = settings.refine_to_ms or problem.budget_ms
    assert target_ms is not None
    front = {each.label: each.architecture for each in report_of(study, importances=False).front}
    found: dict[str, Architecture | None] = {**front, **request.references}
    start = found.get(request.start or next(reversed(front)))
    if start is None:
        raise InputError(
            f"search.refine_from={request.start} is neither a reference nor on the front ({', '.join(front)})"
        )
    with search_progress(0) as show:
        refinement = refine(study, problem, start, target_ms, workers=settings.workers, progress=show)
    last = refinement.path[-1]
    console.print(
        f"NetAdapt: {len(refinement.path) - 1} steps to {latency_text(last.latency_ms)}, "
        f"top-1 {last.top1:.2f} %"
        + ("" if refinement.reached else "; the target was not reached, nothing is left to shrink")
    )


def measure_front(study: optuna.Study, table: LatencyTable, request: SearchRequest) -> LatencyTable:
    """The table with the predicted layers of the networks that are going to be recommended measured.

    Args:
        study: whose front it is; it gets the new latencies.
        table: as it was.
        request: who can measure.
    """
    for _ in range(FRONT_PASSES):
        report = report_of(study, importances=False)
        networks = [each.architecture for each in report.front if each.architecture]
        better = measured(request.latencies, table, networks)
        if better is table:
            break
        table = better
        refused = _refused_networks(report, table)
        _leave_out(study, {name: f"layer {key}: {table.refusal(key)}" for name, key in refused.items()})
        found = {each.id: table.latency(each) for each in networks if each.id not in refused}
        remeasure(study, {name: KnownLatency(each.latency_ms, each.source) for name, each in found.items()})
    return table


def record_foreign(study: optuna.Study, table: LatencyTable, request: SearchRequest) -> None:
    """Time the networks that torchvision or timm build, and keep them in the study; a failure is said.

    Args:
        study: whose report shows them.
        table: beside whose layers they are timed.
        request: which they are, and where they run.
    """
    try:
        publish(study, request.foreign, time_foreign(request, table, {}))
        foreign_journal(request.folder).unlink(missing_ok=True)
    except (MeasurementError, ForeignNetworkError) as error:
        names = ", ".join(each.name for each in request.foreign)
        warn(f"warning: {names} are not in the report: {error}")


def time_best(study: optuna.Study, table: LatencyTable, request: SearchRequest) -> EndToEnd | None:
    """Time the networks that are going to be recommended, and the references, end to end.

    Args:
        study: gets their latencies.
        table: whose level they are stated at.
        request: how many to time, and where.

    Returns:
        What the report has to know of it; None where nothing could be timed.
    """
    settings = request.settings
    if not settings.end_to_end:
        return None
    report = report_of(study, importances=False)
    chosen = report.worth_timing(settings.end_to_end)
    try:
        timed = request.latencies.timed(table, [*chosen.values()], request.folder, carried_networks(study))
    except MeasurementError as error:
        # A search of hours is not lost because the machine was busy at its end.
        warn(f"warning: nothing was timed end to end: {error}")
        return None
    if timed is None:
        return None
    remeasure(
        study,
        {
            each.record.architecture.id: KnownLatency(
                each.record.p50_ms,
                "measured",
                each.error_ms,
                each.record.p90_ms,
                each.record.p99_ms,
                each.energy_mj,
            )
            for each in timed.networks
        },
    )
    _leave_out(study, {name: f"the whole network: {reason}" for name, reason in timed.refused.items()})
    timed.journal.unlink(missing_ok=True)
    rounds, energy = timed.conditions.get("rounds"), timed.conditions.get("energy")
    return EndToEnd(
        trials=sum(each.trial >= 0 for each in report.networks),
        networks=len(timed.networks),
        rounds=rounds if isinstance(rounds, int) else None,
        drift=timed.drift,
        energy=energy if isinstance(energy, str) else None,
        percentile=settings.percentile,
    )


def _refused_networks(report: Report, table: LatencyTable) -> dict[str, LayerKey]:
    """Networks of a report with a layer that the runtime refuses: the first such layer by id."""
    if not table.refused(table.entries):  # else every network of a long study would be built for nothing
        return {}
    networks = {each.id: each.architecture for each in report.networks if each.architecture}
    layers = {name: table.refused(layer_keys(each)) for name, each in networks.items()}
    return {name: keys[0] for name, keys in layers.items() if keys}


def _leave_out(study: optuna.Study, refused: Mapping[str, str]) -> None:
    """Networks that turned out not to run: no report shows them."""
    if refused:
        name, reason = next(iter(refused.items()))
        others = f" and {len(refused) - 1} others are" if len(refused) > 1 else " is"
        warn(f"{name}{others} left out: the runtime refuses {reason}")
    leave_out(study, refused)
