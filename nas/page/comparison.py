"""Two studies compared: equal budgets, answers, circumstances, shared networks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

from nas.page.network_result import NetworkResult
from nas.page.recommendation import best_within
from nas.page.report_data import Report
from nas.page.sentences import gain, saving

_CONDITIONS = ("device", "runtime", "runtime_version", "precision", "threads")
# Fewer say nothing about ranks.
_FEWEST_SHARED = 5


@dataclass(frozen=True, slots=True)
class EqualBudget:
    """The best networks of two studies within the same latency budget.

    Attributes:
        budget_ms: the budget.
        best: the best candidate of each study within it, None where there is none.
    """

    budget_ms: float
    best: tuple[NetworkResult | None, NetworkResult | None]

    @property
    def points(self) -> float | None:
        """The gain in accuracy of the second one, in percentage points."""
        one, other = self.best
        return None if one is None or other is None else other.top1 - one.top1


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two studies beside each other.

    Attributes:
        same_conditions: whether their latencies hold for the same device and settings.
        budgets: the best of both within equal budgets.
        answers: (beside what, in the first, in the second) in words.
        differences: (in what, the first, the second) in words.
        same_references: references that are in both, each as the two studies have it.
        shared: number of networks in both.
        kendall_tau: how far the ranks of their latencies agree, None of too few.
    """

    same_conditions: bool
    budgets: tuple[EqualBudget, ...]
    answers: tuple[tuple[str, str, str], ...]
    differences: tuple[tuple[str, str, str], ...]
    same_references: tuple[tuple[NetworkResult, NetworkResult], ...]
    shared: int
    kendall_tau: float | None


def compare(first: Report, second: Report) -> Comparison:
    """Everything that two studies have to say about each other."""
    from scipy.stats import kendalltau  # seconds to import, and only comparisons need it

    mine, other = ({network.id: network for network in report.networks} for report in (first, second))
    shared = [(mine[id_], other[id_]) for id_ in mine if id_ in other]
    tau = None
    if len(shared) >= _FEWEST_SHARED:
        latencies = ([pair[side].latency_ms for pair in shared] for side in (0, 1))
        tau = float(kendalltau(*latencies).statistic)
    return Comparison(
        same_conditions=_conditions(first) == _conditions(second),
        budgets=equal_budgets(first, second),
        answers=tuple(_answers(first, second)),
        differences=tuple(_differences(first, second)),
        same_references=tuple(pair for pair in shared if pair[0].kind == "reference"),
        shared=len(shared),
        kendall_tau=tau,
    )


def equal_budgets(first: Report, second: Report) -> tuple[EqualBudget, ...]:
    """The best of two studies within equal budgets: round milliseconds between the ends of their fronts."""
    fronts = [report.front for report in (first, second)]
    if not all(fronts):
        return ()
    low = max(each[0].latency_ms for each in fronts)
    high = max(each[-1].latency_ms for each in fronts)
    rounds = (
        step * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for step in (1, 1.5, 2, 3, 5, 7)
    )
    budgets = [each for each in rounds if low <= each <= high]
    return tuple(
        EqualBudget(each, (best_within(first.candidates, each), best_within(second.candidates, each)))
        for each in budgets
    )


def plain(value: object) -> str:
    """A value of the provenance in one line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if isinstance(value, str | int) else json.dumps(value)


def _answers(first: Report, second: Report) -> Iterator[tuple[str, str, str]]:
    answers = [{answer.reference.label: answer for answer in report.answers} for report in (first, second)]
    for name in answers[0] | answers[1]:
        one, other = (each.get(name) for each in answers)
        for what, words in (("latency", gain), ("accuracy", saving)):
            yield f"at {name}’s {what}", words(one) if one else "–", words(other) if other else "–"


def _differences(first: Report, second: Report) -> Iterator[tuple[str, str, str]]:
    """Everything in which two studies differ, in words."""
    one, other = _circumstances(first), _circumstances(second)
    for name in one:
        if one[name] != other[name]:
            yield name, plain(one[name] or "–"), plain(other[name] or "–")


def _circumstances(report: Report) -> dict[str, object]:
    provenance = report.provenance
    names = [name.replace("_", " ") for name in ("hardware", *_CONDITIONS)]
    return {
        **dict(zip(names, _conditions(report), strict=True)),
        "accuracy from": provenance.accuracy.get("name"),
        "dataset": provenance.dataset,
        "task": report.task or None,
        "sampler": provenance.sampler,
        "seed": provenance.seed,
        "budget in ms": report.budget_ms,
        "candidates": f"{len(report.candidates):,}",
        "on the front": len(report.front),
    }


def _conditions(report: Report) -> tuple[object, ...]:
    latency = report.provenance.latency
    return (report.provenance.hardware, *(getattr(latency, name) for name in _CONDITIONS))
