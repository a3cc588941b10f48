"""Measurements beside a search: layers of its front, networks that torchvision or timm build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna

from nas.console import console, warn
from nas.devices.device import LocalTarget
from nas.foreign.timing import measure_end_to_end
from nas.latency.sessions import NetworkRecord, read_network_records
from nas.latency.source import LatencySource
from nas.latency.table import LatencyTable
from nas.measuring.rounds import MeasurementError
from nas.searching.request import SearchRequest
from nas.study.database import StorageError
from nas.study.storage import networks_of
from search_spaces.architecture import Architecture
from search_spaces.gate import Gate

# After measuring the front's layers the front may be another one: look again, but not for ever.
FRONT_PASSES = 3


def measured(latencies: LatencySource, table: LatencyTable, networks: Sequence[Architecture]) -> LatencyTable:
    """The table with the layers of these networks measured; as it was where that fails.

    Args:
        latencies: who measures.
        table: as it was.
        networks: whose layers to measure.
    """
    try:
        return latencies.measured(table, networks)
    except MeasurementError as error:
        # A search of hours is not lost because the machine was busy at its end.
        warn(f"warning: layers of the front stay predicted: {error}")
        return table


def time_foreign(
    request: SearchRequest, table: LatencyTable, known_ms: Mapping[str, float]
) -> dict[str, float]:
    """Latencies of the networks that torchvision or timm build, those that are known as they are.

    Args:
        request: which they are, and where they run.
        table: beside whose layers they are timed.
        known_ms: latencies of some of them, by name.

    Raises:
        nas.measuring.rounds.MeasurementError: if the machine did not hold still.
        nas.foreign.network.ForeignNetworkError: if one cannot be timed.
    """
    missing = [each for each in request.foreign if each.name not in known_ms]
    found = dict(known_ms)
    if missing:
        console.print(f"timing {', '.join(each.name for each in missing)} end to end")
        target, journal = request.latencies.target, foreign_journal(request.folder)
        assert isinstance(target, LocalTarget)  # see check_runnable
        found |= measure_end_to_end(missing, table, target, journal, request.latencies.rounds)
    return {each.name: found[each.name] for each in request.foreign}


def foreign_journal(folder: Path) -> Path:
    """Rounds of networks that torchvision or timm build, until what follows from them is saved."""
    return folder / "torchvision.jsonl"


def carried_networks(study: optuna.Study) -> list[NetworkRecord]:
    """Networks that were measured for the latencies that a study carries."""
    text = networks_of(study)
    return (
        []
        if text is None
        else read_network_records(Gate(f"the study {study.study_name!r}", StorageError), text)
    )
