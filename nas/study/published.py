"""References of a study that are no trials: networks of which only the published accuracy is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna

from nas.cost import cost
from nas.foreign.network import ForeignNetwork
from nas.latency.table import LatencyModel
from search_spaces.architecture import Architecture
from search_spaces.references import published_top1

# Study attribute that holds them by name.
PUBLISHED = "published"


def publish(
    study: optuna.Study, references: Sequence[ForeignNetwork], latencies_ms: Mapping[str, float]
) -> None:
    """Keep measured references in a study, where its reports find them; earlier ones are replaced."""
    study.set_user_attr(
        PUBLISHED,
        {
            each.name: {
                "top1": each.top1,
                "weights": each.weights,
                "latency_ms": latencies_ms[each.name],
                "latency_source": "measured",
                "macs": each.macs,
                "parameters": each.parameters,
                "resolution": each.resolution,
            }
            for each in references
        },
    )


def publish_tables(
    study: optuna.Study, references: Mapping[str, Architecture], latency: LatencyModel
) -> None:
    """Keep references of the family of which only the published accuracy is known; others stay.

    Args:
        study: where its reports find them.
        references: by name, each with a published accuracy at its resolution.
        latency: of the study.
    """
    kept = study.user_attrs.get(PUBLISHED)
    found: dict[str, object] = {**kept} if isinstance(kept, dict) else {}
    for name, architecture in references.items():
        counted, known = cost(architecture), latency.latency(architecture)
        found[name] = {
            "top1": published_top1(name, architecture.resolution),
            "latency_ms": known.latency_ms,
            "latency_source": known.source,
            "macs": counted.macs,
            "parameters": counted.parameters,
            "resolution": architecture.resolution,
            "table": architecture.to_dict(),
        }
    study.set_user_attr(PUBLISHED, found)


def published_latencies_ms(study: optuna.Study) -> dict[str, float]:
    """Latencies in milliseconds that :func:`publish` kept, by name."""
    found = study.user_attrs.get(PUBLISHED)
    return {
        name: float(each["latency_ms"])
        for name, each in (found.items() if isinstance(found, dict) else ())
        if isinstance(each, dict)
        and isinstance(each.get("latency_ms"), float | int)
        and each["latency_ms"] > 0
    }
