"""The latency budget of a search: milliseconds or what a network takes, less a margin where uncertain."""

from __future__ import annotations

from dataclasses import dataclass

from nas.foreign.catalogue import foreign_networks, is_foreign
from nas.foreign.network import ForeignNetwork, ForeignNetworkError
from nas.latency.provision import reference_architectures
from nas.latency.table import LatencyTable
from nas.settings import milliseconds
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.references import UnknownReferenceError
from search_spaces.space import SearchSpace


@dataclass(frozen=True, slots=True)
class LatencyBudget:
    """The budget that ``search.budget_ms`` and ``search.budget_margin`` ask for.

    Attributes:
        latency_ms: the number, None where a network gives it or there is no budget.
        name: what reports call the network that gives it, None where none does.
        architecture: that network, None where it is no table of ours.
        foreign: that network where torchvision or timm build it: it is timed before the search.
        margin: share of the budget to keep free, None for the error of the latencies where that is known.
    """

    latency_ms: float | None = None
    name: str | None = None
    architecture: Architecture | None = None
    foreign: ForeignNetwork | None = None
    margin: float | None = None

    @classmethod
    def read(
        cls, budget: str | None, margin: float | None, space: SearchSpace, resolution: int | None
    ) -> LatencyBudget:
        """The budget that was asked for.

        Args:
            budget: milliseconds, the name of a reference, of a network of torchvision or timm, or a file.
            margin: share to keep free.
            space: gives a reference its classes and resolution.
            resolution: of references where it is not the space's.

        Raises:
            UnknownReferenceError: if it is neither a number nor a network.
        """
        if budget is None:
            return cls(margin=margin)
        latency_ms = milliseconds(budget)
        if latency_ms is not None:
            return cls(latency_ms, margin=margin)
        if is_foreign(budget):
            found = foreign_networks([budget])
            if len(found) > 1:
                raise ForeignNetworkError(
                    f"search.budget_ms={budget} names {len(found)} networks: name one of them"
                )
            return cls(name=found[0].name, foreign=found[0], margin=margin)
        try:
            ((name, architecture),) = reference_architectures(space, [budget], resolution).items()
        except UnknownReferenceError as error:
            raise UnknownReferenceError(
                f"search.budget_ms={budget} is neither a number of milliseconds (write 20) nor a network: "
                f"{error}"
            ) from None
        return cls(name=name, architecture=architecture, margin=margin)

    def margin_on(self, table: LatencyTable) -> float:
        """Share of the budget that is kept free.

        On estimates a number of milliseconds keeps their error free, unless the user says otherwise. Where a
        network gives the budget, an error of the level is that network's, too.
        """
        if self.margin is not None:
            return self.margin
        return table.estimate_error or 0.0 if self.latency_ms is not None else 0.0

    def bound_ms(self, table: LatencyTable, timed_ms: float | None = None) -> float | None:
        """The most milliseconds a network may take, None without a budget.

        Args:
            table: what latencies are taken from.
            timed_ms: of the foreign network, at the level of the table.
        """
        found = self.latency_ms if self.foreign is None else timed_ms
        if self.architecture is not None:
            latency = table.latency(self.architecture)
            if latency.refused:
                layer = latency.refused[0]
                raise InputError(
                    f"search.budget_ms={self.name}: {table.header.runtime} ({table.header.precision}) "
                    f"refuses its layer {layer}: {table.refusal(layer)}; give milliseconds or another network"
                )
            found = latency.latency_ms
        return None if found is None else found * (1 - self.margin_on(table))
