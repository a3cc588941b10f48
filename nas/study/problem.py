"""The problem of a search: the parts that stay however networks are proposed and evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nas.accuracy.source import AccuracyEstimator, SearchSource
from nas.cost import Limits
from nas.latency.table import LatencyModel
from nas.study.neighbourhood import Neighbourhood
from nas.study.objective import Objective
from search_spaces.architecture import Architecture
from search_spaces.space import SearchSpace


@dataclass(frozen=True, slots=True)
class Problem:
    """Which network is the best for what, within which bounds.

    Attributes:
        space: where candidates come from.
        objective: what a network is worth.
        accuracy: the one source of accuracy, for references and candidates alike.
        latency: asked before any accuracy is.
        references: networks to evaluate beside the candidates, by name, also above the budget.
        budget_ms: hard bound on the latency of candidates, None for none.
        limits: what candidates may cost at most, besides time.
    """

    space: SearchSpace
    objective: Objective
    accuracy: AccuracyEstimator
    latency: LatencyModel
    references: Mapping[str, Architecture] = field(default_factory=dict)
    budget_ms: float | None = None
    limits: Limits | None = None

    @property
    def expensive(self) -> bool:
        """True if the source says that an accuracy takes a tenth of a second or more."""
        return isinstance(self.accuracy, SearchSource) and self.accuracy.expensive

    def neighbourhood(self) -> Neighbourhood:
        """The space as far as it is within the bounds.

        Raises:
            BudgetError: if the budget is not positive.
        """
        return Neighbourhood(self.space, self.latency, self.budget_ms, self.limits)
