"""What is learned of networks after their trials: a complete trial cannot change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState

from nas.accuracy.source import Judgement

# Trials that need no further evaluation: complete, or stopped on their way.
SETTLED = (TrialState.COMPLETE, TrialState.PRUNED)

# Prefix of the study's attributes, one a network: machines that share a study do not overwrite what others
# measured.
_REMEASURED = "remeasured:"
_TRAINED = "trained:"
_SCATTER = "seed_scatter"


def remeasure(study: optuna.Study, latencies: Mapping[str, Mapping[str, Any]]) -> None:
    """Record better latencies of networks than their trials hold; reports put these in their place.

    Args:
        study: the study.
        latencies: by architecture id, ``latency_ms`` and ``latency_source``, and where a network was timed
            end to end ``p90_ms``, ``p99_ms`` and ``latency_error_ms``.
    """
    for name, each in latencies.items():
        study.set_user_attr(_REMEASURED + name, dict(each))


def remeasured(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`remeasure` kept among a study's attributes, by architecture id."""
    start = len(_REMEASURED)
    return {name[start:]: value for name, value in attributes.items() if name.startswith(_REMEASURED)}


def train_to_the_end(
    study: optuna.Study, architecture: str, judged: Judgement, made: Mapping[str, Any]
) -> None:
    """Record how well a network does that was trained to the end; reports put it in the trial's place.

    Args:
        study: the study.
        architecture: id of the network.
        judged: how well it does.
        made: how that came about, plain values.
    """
    study.set_user_attr(_TRAINED + architecture, {"judgement": judged.to_dict(), **made})


def trained(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`train_to_the_end` kept among a study's attributes, by architecture id."""
    start = len(_TRAINED)
    return {name[start:]: value for name, value in attributes.items() if name.startswith(_TRAINED)}


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


def scatter_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`record_scatter` kept; empty if nothing."""
    return dict(attributes.get(_SCATTER) or {})
