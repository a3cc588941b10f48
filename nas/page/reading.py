"""The reader of studies: from its folder or database, checked, to a report in plain data.

report = report_of(read_study(Path("results/digits")))
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from nas.accuracy.source import Judgement
from nas.cost import BYTES_PER_VALUE
from nas.latency.table import MAX_MS
from nas.page.importances import parameter_importances
from nas.page.network_result import Member, NetworkResult, losses
from nas.page.report_data import TRAINED, Report
from nas.study.journal import JournalReader, storage_of, without_collecting
from nas.study.objective import THIRD_COSTS
from nas.study.pareto import box_bounds, dominated_share_over_time, front
from nas.study.provenance import Provenance
from nas.study.published import PUBLISHED
from nas.study.storage import open_storage
from nas.study.trial import (
    KnownLatency,
    Trial,
    checked_resolution,
    checked_top1,
    remeasured,
    scatter_of,
    trained,
)
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError, shorten
from search_spaces.gate import Gate
from search_spaces.references import UnknownReferenceError, published_top1
from search_spaces.space import SearchSpace

_log = logging.getLogger(__name__)
STUDY_FILE = "study.journal"
_SHOWN_FAILURES = 5


class ReportError(InputError):
    """A study that no report can be made of. The message says why."""


def read_study(
    folder: Path, storage: str | None = None, say: Callable[[str], None] = _log.warning
) -> optuna.Study:
    """The study kept in a folder, to be read; a search may be writing to it meanwhile.

    Args:
        folder: ``results/<study>``, holds ``study.journal``.
        storage: database the study of the folder's name is kept in, instead of the file.
        say: told in one line when that database is away.

    Raises:
        ReportError: if there is no study.
        nas.study.storage.StorageError: if the database does not answer.
    """
    name = folder.resolve().name
    opened: BaseStorage
    if storage is not None:
        opened = open_storage(storage, say=say)
    else:
        path = folder / STUDY_FILE
        if not path.is_file():
            raise ReportError(
                f"there is no study in {folder}: it has no {STUDY_FILE}; name the folder of a study, "
                "or its database with storage=postgresql://..."
            )
        opened = storage_of(JournalReader(path, ReportError), Gate(str(path), ReportError))
    names = optuna.get_all_study_names(opened)
    if name not in names:
        if storage is not None or len(names) != 1:
            raise ReportError(f"there is no study {name!r} here; there are: {', '.join(names) or 'none'}")
        name = names[0]
    return optuna.load_study(study_name=name, storage=opened)


@without_collecting()
def report_of(study: optuna.Study, importances: bool = True) -> Report:
    """Compute everything a report shows.

    Args:
        study: made by :func:`nas.study.loop.run_search`, may be in progress.
        importances: whether to compute parameter importances, which takes some seconds.

    Raises:
        ReportError: if the study was not made by this project or holds no complete trial.
    """
    attributes = study.user_attrs
    if "space" not in attributes:
        raise ReportError(
            f"study {study.study_name!r} was not made by this project: it names no search space"
        )
    gate = Gate(f"the study {study.study_name!r}", ReportError)
    with gate.reading():
        return _report(gate, study, attributes, importances)


def _report(gate: Gate, study: optuna.Study, attributes: Mapping[str, object], importances: bool) -> Report:
    space = SearchSpace.from_dict(gate.plain(attributes["space"]))
    trials = study.get_trials(deepcopy=False)
    ended = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    # Somebody may have added trials of their own with plain Optuna.
    better = remeasured(attributes, gate)
    refused = {name for name, each in better.items() if each is None}
    # What the runtime turned out to refuse is no network to be recommended, nor to be compared with.
    complete = [
        (trial, record)
        for trial in ended
        if (record := _told(trial, gate)) is not None and record.architecture not in refused
    ]
    if not complete:
        raise ReportError(
            f"study {study.study_name!r} holds no complete trial yet"
            + (f", but {len(ended)} that this program did not make" if ended else "")
        )
    objectives = study.metric_names or ["top1", "latency_ms"]
    third = gate.choice("a third objective", objectives[2], THIRD_COSTS) if len(objectives) > 2 else None
    caution = gate.mapping(attributes.get("fingerprint") or {}, "fingerprint").get("search.caution", 0.0)
    provenance = Provenance.of(attributes, gate)
    known = _Known(
        gate.number("search.caution", caution, 0, 1_000),
        better,
        # While networks are being trained, the report is that of the search.
        trained(attributes) if provenance.trained else {},
        gate.number("seed_scatter", scatter_of(attributes).get("points", 0.0), 0, 100),
        provenance.latency.error_percent,
        BYTES_PER_VALUE.get(provenance.latency.precision or "fp32", 4),
    )
    networks = tuple(_network(gate, trial, record, space, known) for trial, record in complete)
    budget_ms = provenance.budget_ms
    if budget_ms is not None:
        gate.number("budget_ms", budget_ms, 1e-9, MAX_MS)
    finished = tuple(_finished(gate, each, known) for each in networks)
    return Report(
        name=study.study_name,
        networks=finished + _published(gate, attributes.get(PUBLISHED) or {}, known),
        failed=sum(trial.state == TrialState.FAIL for trial in trials),
        stopped=sum(trial.state == TrialState.PRUNED for trial in trials),
        foreign=len(ended) - len(complete),
        failures=_failures(trials),
        budget_ms=budget_ms,
        hypervolume=hypervolume_over_trials(networks, budget_ms, third),
        importances=parameter_importances([trial for trial, _ in complete]) if importances else (),
        provenance=provenance,
        limits=_limits(gate, attributes.get("fingerprint") or {}),
        seed_scatter=known.scatter,
        caution=known.caution,
        third=third,
    )


def _limits(gate: Gate, fingerprint: object) -> dict[str, float]:
    found = gate.mapping(fingerprint, "fingerprint")
    names = {name: f"search.limits.{name}" for name in THIRD_COSTS}
    return {name: gate.number(key, found[key], 0) for name, key in names.items() if key in found}


@dataclass(frozen=True, slots=True)
class _Known:
    """The part of a study that all its networks share.

    Attributes:
        caution: standard deviations taken off uncertain accuracies.
        remeasured: latencies by architecture id, see :func:`nas.study.trial.remeasured`.
        trained: how well networks did that were trained to the end, by architecture id.
        scatter: of trained accuracies with the seed, one standard deviation in points.
        error_percent: standard deviation of latencies by source.
        bytes_per_value: of weights and feature maps.
    """

    caution: float
    remeasured: Mapping[str, KnownLatency | None]
    trained: Mapping[str, object]
    scatter: float
    error_percent: Mapping[str, float]
    bytes_per_value: int

    def error_ms(self, latency: KnownLatency) -> float | None:
        """The standard deviation of a latency: its own, or that of its source."""
        percent = self.error_percent.get(latency.latency_source)
        if percent is None or latency.latency_error_ms is not None:
            return latency.latency_error_ms
        return latency.latency_ms * percent / 100


def _told(trial: FrozenTrial, gate: Gate) -> Trial | None:
    """The network of a trial of ours, once its accuracy is told."""
    record = Trial.of(trial, gate)
    return None if record is None or record.accuracy is None else record


def _failures(trials: Sequence[FrozenTrial]) -> tuple[tuple[str, int], ...]:
    errors = (
        str(trial.user_attrs["error"])
        for trial in trials
        if trial.state == TrialState.FAIL and "error" in trial.user_attrs
    )
    # Networks fail for one reason in different rows of their tables.
    reasons = Counter(shorten(re.sub(r"^row \d+: ", "", error)) for error in errors)
    return tuple(reasons.most_common(_SHOWN_FAILURES))


def _network(
    gate: Gate, trial: FrozenTrial, record: Trial, space: SearchSpace, known: _Known
) -> NetworkResult:
    accuracy = record.accuracy
    assert accuracy is not None
    # Of older studies: no trial knows more than what the table says.
    source = "table" if record.latency_source == "measured" else record.latency_source
    latency = known.remeasured.get(record.architecture) or KnownLatency(record.latency_ms, source)
    deviation = accuracy.deviation
    if deviation is not None and accuracy.source == "measured":
        deviation = math.hypot(deviation, known.scatter)
    network: Architecture | Member | None = record.network
    if network is None and (trial.params or (record.kind != "reference" and not space.parameters())):
        network = Member(record.architecture, space, trial.params, gate)
    # Of what has a name there are few.
    known_by_name = network.architecture if record.name and isinstance(network, Member) else record.network
    return NetworkResult(
        trial=trial.number,
        id=record.architecture,
        kind=record.kind,
        name=record.name,
        top1=accuracy.top1,
        bytes_per_value=known.bytes_per_value,
        deviation=deviation,
        caution=known.caution,
        accuracy_source=accuracy.source,
        macs=record.macs,
        parameters=record.parameters,
        resolution=_resolution(gate, network, record, trial, space),
        network=network,
        published=_published_top1(record.name, known_by_name),
        judgement=accuracy.judgement,
        latency_ms=latency.latency_ms,
        latency_source=latency.latency_source,
        latency_error_ms=known.error_ms(latency),
        p90_ms=latency.p90_ms,
        p99_ms=latency.p99_ms,
        energy_mj=latency.energy_mj,
    )


def _resolution(
    gate: Gate, network: Architecture | Member | None, record: Trial, trial: FrozenTrial, space: SearchSpace
) -> int | None:
    """The side of a network's images without building it."""
    if isinstance(network, Architecture):
        return network.resolution
    if network is None:
        return record.resolution
    found = trial.params.get("resolution", space.resolutions[0])
    if found not in space.resolutions:
        gate.fail(f"holds a trial at {found!r} px, which the space has not")
    return int(found)


def _finished(gate: Gate, network: NetworkResult, known: _Known) -> NetworkResult:
    """The network with the accuracy of its final training, where it had one."""
    if network.id not in known.trained:
        return network
    judgement = gate.record("judgement", Judgement, gate.mapping(known.trained[network.id])["judgement"])
    return replace(
        network,
        top1=judgement.top1,
        deviation=judgement.deviation,
        accuracy_source=TRAINED,
        judgement=judgement,
    )


def _published_top1(name: str | None, architecture: Architecture | None) -> float | None:
    if name is None or architecture is None or architecture.classes != 1000:
        return None
    try:
        return published_top1(name, architecture.resolution)
    except UnknownReferenceError:
        return None


def _published(gate: Gate, references: object, known: _Known) -> tuple[NetworkResult, ...]:
    found = []
    for number, (name, data) in enumerate(gate.mapping(references, PUBLISHED).items(), start=1):
        each = gate.mapping(data, name)
        top1 = checked_top1(gate, each["top1"], "published")
        # Of block tables of ours, which are timed like any other.
        architecture = Architecture.from_dict(each["table"]) if each.get("table") else None
        identity = architecture.id if architecture else name
        latency = known.remeasured.get(identity) or gate.record("a latency", KnownLatency, each)
        found.append(
            NetworkResult(
                trial=-number,
                id=identity,
                kind="reference",
                name=name,
                top1=top1,
                deviation=None,
                caution=known.caution,
                accuracy_source="published",
                macs=gate.integer("macs", each["macs"]),
                parameters=gate.integer("parameters", each["parameters"]),
                resolution=checked_resolution(gate, each["resolution"]),
                network=architecture,
                latency_ms=latency.latency_ms,
                latency_source=latency.latency_source,
                latency_error_ms=known.error_ms(latency),
                p90_ms=latency.p90_ms,
                p99_ms=latency.p99_ms,
                energy_mj=latency.energy_mj,
            )
        )
    return tuple(_finished(gate, each, known) for each in found)


def hypervolume_over_trials(
    networks: Sequence[NetworkResult], budget_ms: float | None, third: str | None
) -> tuple[tuple[int, float], ...]:
    """(trial, share) wherever the share of the box changes; see :func:`nas.study.pareto.dominated_share`."""
    values = losses(networks, third)
    found = values[front(values)]
    references = values[[network.kind == "reference" for network in networks]]
    bounds = box_bounds(found[:, 1:], references[:, 1:], math.inf if budget_ms is None else budget_ms)
    return tuple((networks[index].trial, share) for index, share in dominated_share_over_time(values, bounds))
