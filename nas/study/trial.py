"""Better latencies of networks than their trials hold: a complete trial cannot change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna

# Prefix of the study's attributes, one a network: machines that share a study do not overwrite what others
# measured.
_REMEASURED = "remeasured:"


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
