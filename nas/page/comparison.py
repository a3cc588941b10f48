"""What two studies have to do with each other: equal budgets, answers, circumstances, shared networks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nas.page.markup import Markup, card, chooser, element, facts, milliseconds, plain, table
from nas.page.network_result import NetworkResult
from nas.page.recommendation import best_within
from nas.page.report import Report, section
from nas.page.sentences import gain, saving, signed
from nas.quantities import latency_text

_CONDITIONS = ("device", "runtime", "runtime_version", "precision", "threads")


@dataclass(frozen=True, slots=True)
class EqualBudget:
    """What two studies offer within the same latency budget.

    Attributes:
        budget_ms: the budget.
        best: the best candidate of each study within it, None where there is none.
    """

    budget_ms: float
    best: tuple[NetworkResult | None, NetworkResult | None]

    @property
    def points(self) -> float | None:
        """How much more accurate the second one is, in percentage points."""
        one, other = self.best
        return None if one is None or other is None else other.top1 - one.top1


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


def comparison_card(first: Report, second: Report) -> Markup:
    """Everything that two studies have to say about each other."""
    from scipy.stats import kendalltau  # seconds to import, and only comparisons need it

    children: list[str] = []
    if _conditions(first) != _conditions(second):
        children.append(
            element(
                "p",
                "Their latencies hold for different devices or settings: compare the answers, "
                "not milliseconds with milliseconds.",
                class_="warning",
            )
        )
    rows = [
        (
            f"within {latency_text(row.budget_ms)}",
            *(
                element("span", chooser(report, number, best), *facts(best, " ")) if best else "–"
                for number, (report, best) in enumerate(zip((first, second), row.best, strict=True))
            ),
            "–" if row.points is None else f"{signed(row.points, 1)} points",
        )
        for row in equal_budgets(first, second)
    ]
    if rows:
        children.append(element("h3", "The best within equal latency budgets"))
        children.append(table(("", first.name, second.name, f"{second.name} over {first.name}"), rows))
    answers = [{answer.reference.label: answer for answer in report.answers} for report in (first, second)]
    rows = []
    for name in answers[0] | answers[1]:
        pair = [answer.get(name) for answer in answers]
        rows.append((f"at {name}’s latency", *(gain(answer) if answer else "–" for answer in pair)))
        rows.append((f"at {name}’s accuracy", *(saving(answer) if answer else "–" for answer in pair)))
    if rows:
        children.append(element("h3", "Beside the references"))
        children.append(table(("", first.name, second.name), rows))
    children.append(element("h3", "What differs"))
    children.append(table(("", first.name, second.name), _differences(first, second), numbers_from=3))
    rows = []
    mine, other = ({network.id: network for network in report.networks} for report in (first, second))
    shared = [(mine[id_], other[id_]) for id_ in mine if id_ in other]
    for one, two in shared:
        if one.kind == "reference":
            rows.append(
                (
                    one.label,
                    *(milliseconds(n) for n in (one, two)),
                    f"{two.latency_ms / one.latency_ms:.2f}×",
                )
            )
    if rows:
        children.append(element("h3", "Latency of the same network"))
        children.append(table(("", first.name, second.name, "ratio"), rows))
    if len(shared) >= 5:
        tau = kendalltau(
            [one.latency_ms for one, _ in shared], [two.latency_ms for _, two in shared]
        ).statistic
        children.append(
            element(
                "p",
                f"{len(shared):,} networks are in both studies; their latencies agree in rank to "
                f"Kendall tau {tau:.3f}.",
                class_="quiet",
            )
        )
    return card("Side by side", *children, class_="card compare")


def _differences(first: Report, second: Report) -> Iterator[tuple[str, str, str]]:
    """Everything in which two studies differ, in words."""
    one, other = _circumstances(first), _circumstances(second)
    for name in one:
        if one[name] != other[name]:
            yield name, plain(one[name] or "–"), plain(other[name] or "–")


def _circumstances(report: Report) -> dict[str, Any]:
    provenance = report.provenance
    latency = section(provenance, "latency")
    return {
        "hardware": provenance.get("hardware"),
        **{name.replace("_", " "): latency.get(name) for name in _CONDITIONS},
        "accuracy from": section(provenance, "accuracy").get("name"),
        "dataset": provenance.get("dataset"),
        "task": report.task or None,
        "sampler": provenance.get("sampler"),
        "seed": provenance.get("seed"),
        "budget in ms": report.budget_ms,
        "candidates": f"{len(report.candidates):,}",
        "on the front": len(report.front),
    }


def _conditions(report: Report) -> tuple[object, ...]:
    latency = section(report.provenance, "latency")
    return (report.provenance.get("hardware"), *(latency.get(name) for name in _CONDITIONS))
