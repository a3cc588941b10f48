"""Records of trials: the network of each, and what is learned of networks after their trials.

A trial keeps it in user attributes, whose names are written and read here alone:

    architecture     id of the network
    kind             "candidate", "reference" or "refinement" (see nas.study.netadapt); only candidates count
                     towards the trials wanted and are bound by the budget
    name             name of the reference, else null
    latency_ms, latency_source, macs, parameters
    table            Architecture.to_dict() of a reference (it may lie outside the space)
    top1, deviation, accuracy_source, judgement, curve      once it is evaluated; or
    error            why its accuracy cannot be told

A complete trial cannot change: what is found out later is kept in attributes of the study.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, cast, get_args

import optuna
from optuna.trial import FrozenTrial, TrialState

from nas.accuracy.source import Accuracy, AccuracySource, Judgement
from nas.latency.table import MAX_MS
from search_spaces.architecture import MAX_RESOLUTION, Architecture
from search_spaces.gate import Gate, is_label

TrialKind = Literal["candidate", "reference", "refinement"]
_KINDS: tuple[TrialKind, ...] = get_args(TrialKind)

# Trials that need no further evaluation: complete, or stopped on their way.
SETTLED = (TrialState.COMPLETE, TrialState.PRUNED)
# Attributes that are known only once a network is evaluated.
RESULTS = ("top1", "deviation", "accuracy_source", "judgement", "curve", "error")
# What every trial of ours says of its network from the beginning.
_OURS = frozenset(("architecture", "kind", "latency_ms", "latency_source"))
_ID = re.compile(r"[0-9a-f]{10}")
_MOST_RUNGS = 1_000


@dataclass(frozen=True, slots=True)
class Trial:
    """The record that a trial holds of its network.

    Attributes:
        architecture: id of the network.
        kind: what it was evaluated as.
        latency_ms: milliseconds for one image.
        latency_source: of the latency.
        macs: multiply-accumulates.
        parameters: trainable parameters.
        name: of a reference, else None.
        network: the network, where it is a reference.
        accuracy: None before it is told, and where it cannot be.
        error: why it cannot be told, else None.
        abandoned: whether its process died over it.
        resolution: of a reference of older studies, which keep no table of it.
    """

    architecture: str
    kind: TrialKind
    latency_ms: float
    latency_source: str
    macs: int
    parameters: int
    name: str | None = None
    network: Architecture | None = None
    accuracy: Accuracy | None = None
    error: str | None = None
    abandoned: bool = False
    resolution: int | None = None

    def attributes(self) -> dict[str, object]:
        """As user attributes: the inverse of :meth:`read`."""
        found: dict[str, object] = {
            "architecture": self.architecture,
            "kind": self.kind,
            "name": self.name,
            "latency_ms": self.latency_ms,
            "latency_source": self.latency_source,
            "macs": self.macs,
            "parameters": self.parameters,
        }
        if self.network is not None:
            found["table"] = self.network.to_dict()
        if (accuracy := self.accuracy) is not None:
            found |= {
                "top1": accuracy.top1,
                "deviation": accuracy.deviation,
                "accuracy_source": accuracy.source,
            }
            if accuracy.judgement:
                found["judgement"] = accuracy.judgement.to_dict()
            if accuracy.curve:
                found["curve"] = [list(each) for each in accuracy.curve]
        if self.error is not None:
            found["error"] = self.error
        return found

    @classmethod
    def of(cls, trial: FrozenTrial, gate: Gate) -> Trial | None:
        """The record of a trial; None of one that was not made by this project.

        Args:
            trial: of the study.
            gate: names the study.

        Raises:
            InputError: of the gate's kind, if an attribute is no such thing.
        """
        if not trial.user_attrs.keys() >= _OURS:
            return None
        with gate.reading():
            return cls._read(trial, gate)

    @classmethod
    def _read(cls, trial: FrozenTrial, gate: Gate) -> Trial:
        attributes = trial.user_attrs
        # It names a file: an id of ours and nothing else.
        if not _ID.fullmatch(gate.string("architecture", attributes["architecture"])):
            gate.fail(f"holds an architecture {attributes['architecture']!r}, which is no id")
        name, table, error = attributes.get("name"), attributes.get("table"), attributes.get("error")
        return cls(
            architecture=attributes["architecture"],
            kind=cast(TrialKind, gate.choice("kind", attributes["kind"], _KINDS)),
            latency_ms=gate.number("latency_ms", attributes["latency_ms"], 1e-9, MAX_MS),
            latency_source=gate.string("latency_source", attributes["latency_source"], 30),
            macs=gate.integer("macs", attributes["macs"]),
            parameters=gate.integer("parameters", attributes["parameters"]),
            name=None if name is None else _name(gate, name),
            network=Architecture.from_dict(gate.plain(table)) if table else None,
            accuracy=_accuracy(attributes, gate, trial.state == TrialState.PRUNED),
            error=None if error is None else str(error),
            abandoned="abandoned" in attributes,
            resolution=checked_resolution(gate, attributes.get("resolution")),
        )


def _name(gate: Gate, value: object) -> str:
    """The name of a reference, which files of what is trained of it are called after."""
    name = gate.string("name", value, 100)
    if not is_label(name):
        gate.fail(f"holds a reference {name!r}, which is no name")
    return name


def _accuracy(attributes: Mapping[str, object], gate: Gate, stopped: bool) -> Accuracy | None:
    if "top1" not in attributes or "accuracy_source" not in attributes:
        return None
    source = gate.string("accuracy_source", attributes["accuracy_source"], 30)
    deviation, judgement = attributes.get("deviation"), attributes.get("judgement")
    curve = gate.sequence(attributes.get("curve") or [], "curve", _MOST_RUNGS)
    return Accuracy(
        top1=checked_top1(gate, attributes["top1"], source),
        source=cast(AccuracySource, source),
        deviation=None if deviation is None else gate.number("deviation", deviation, 0, 1_000),
        judgement=None if judgement is None else gate.record("judgement", Judgement, judgement),
        curve=tuple(
            (gate.integer("epochs", epochs), checked_top1(gate, top1, source))
            for epochs, top1 in (gate.sequence(each, "a rung") for each in curve)
        ),
        stopped=stopped,
    )


def checked_top1(gate: Gate, value: object, source: str) -> float:
    """An accuracy as a number: percent, but scores have no unit.

    Args:
        gate: names the source.
        value: as it was kept.
        source: of the accuracy.

    Raises:
        InputError: of the gate's kind, if it is none.
    """
    limit = 1e9 if source == "proxy" else 100
    return gate.number("top1", value, -limit, limit)


def checked_resolution(gate: Gate, value: object) -> int | None:
    """The side of a network's images in pixels, None where it is not known.

    Raises:
        InputError: of the gate's kind, if it is no such number.
    """
    return None if value is None else gate.integer("resolution", value, 1, MAX_RESOLUTION)


# Prefix of the study's attributes, one a network: machines that share a study do not overwrite what others
# measured.
_REMEASURED = "remeasured:"
_TRAINED = "trained:"
_SCATTER = "seed_scatter"


@dataclass(frozen=True, slots=True)
class KnownLatency:
    """A network's latency as far as it is known.

    Attributes:
        latency_ms: milliseconds for one image.
        latency_source: of the latency.
        latency_error_ms: one standard deviation.
        p90_ms: 90th percentile, where it was timed end to end.
        p99_ms: 99th percentile.
        energy_mj: millijoules an inference.
    """

    latency_ms: float
    latency_source: str
    latency_error_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    energy_mj: float | None = None

    def __post_init__(self) -> None:
        others = (self.latency_error_ms, self.p90_ms, self.p99_ms, self.energy_mj)
        if not 0 < self.latency_ms <= MAX_MS or not all(0 <= (each or 0) <= MAX_MS for each in others):
            raise ValueError(f"{self.latency_ms:g} ms is no latency, or what is told of it is none")


def remeasure(study: optuna.Study, latencies: Mapping[str, KnownLatency]) -> None:
    """Record better latencies of networks than their trials hold, by id; reports put these in their place."""
    for name, each in latencies.items():
        study.set_user_attr(_REMEASURED + name, asdict(each))


def leave_out(study: optuna.Study, refused: Mapping[str, str]) -> None:
    """Record networks that the runtime does not take, by id with the reason: no report shows them."""
    for name, reason in refused.items():
        study.set_user_attr(_REMEASURED + name, {"refused": reason})


def remeasured(attributes: Mapping[str, object], gate: Gate) -> dict[str, KnownLatency | None]:
    """The latencies that :func:`remeasure` kept in a study, by id; None of networks that were left out."""
    return {
        name: None if "refused" in gate.mapping(each) else gate.record("a latency", KnownLatency, each)
        for name, each in _by_network(attributes, _REMEASURED).items()
    }


def train_to_the_end(
    study: optuna.Study, architecture: str, judged: Judgement, made: Mapping[str, object]
) -> None:
    """Record how well a network does that was trained to the end; reports put it in the trial's place.

    Args:
        study: the study.
        architecture: id of the network.
        judged: how well it does.
        made: how that came about, plain values.
    """
    study.set_user_attr(_TRAINED + architecture, {"judgement": judged.to_dict(), **made})


def trained(attributes: Mapping[str, object]) -> dict[str, object]:
    """The accuracies that :func:`train_to_the_end` kept in a study, by architecture id."""
    return _by_network(attributes, _TRAINED)


def _by_network(attributes: Mapping[str, object], prefix: str) -> dict[str, object]:
    return {name.removeprefix(prefix): value for name, value in attributes.items() if name.startswith(prefix)}


def record_scatter(study: optuna.Study, points: float, top1: Mapping[str, Sequence[float]]) -> None:
    """Record how much trained accuracies scatter with the seed.

    Args:
        study: the study.
        points: one standard deviation.
        top1: what it was told from: by architecture id, top-1 with each seed.
    """
    study.set_user_attr(
        _SCATTER, {"points": points, "top1": {name: list(each) for name, each in top1.items()}}
    )


def scatter_of(attributes: Mapping[str, object]) -> dict[str, object]:
    """The scatter that :func:`record_scatter` kept; empty if none."""
    return dict(Gate("the study").mapping(attributes.get(_SCATTER) or {}, _SCATTER))
