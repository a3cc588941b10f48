"""NetAdapt: shrink a network step by step to a latency, the second half of how MobileNetV3 was made.

    result = refine(study, Problem(space, objective, accuracy, latency), start=architecture, target_ms=20.0)
    result.path[-1]         # the network it ended with

Source: Yang et al. 2018 (arXiv 1804.03230), with the proposals and the choice of MobileNetV3 (Howard
et al. 2019, section 4.2). In each step every expansion and every bottleneck width is shrunk on its
own, just far enough to save a fixed share of the first network's latency; the proposal with the best
ratio of accuracy change to latency change is the next network. Bottlenecks joined by residuals shrink
together: a stage has one width. Proposals are members of the space, so that its candidate values are
the sizes to shrink to, and each is a trial of the study of the kind ``refinement``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import optuna

from nas.quantities import latency_text
from nas.study.loop import Progress, SearchResult, run_proposer
from nas.study.neighbourhood import Candidate, Neighbourhood, SpaceExhaustedError
from nas.study.objective import Objective
from nas.study.problem import Problem
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError

_SHRINKABLE = re.compile(r"stage\d+\.(block\d+\.)?(expansion|width)")


class RefinementError(InputError):
    """A network that cannot be refined. The message gives the reason."""


@dataclass(frozen=True, slots=True)
class Step:
    """A network on the way.

    Attributes:
        architecture: the network.
        top1: accuracy in percent, cautious where the objective is.
        latency_ms: milliseconds for one image.
        change: the parameter that was shrunk, and to what; empty at the start.
    """

    architecture: Architecture
    top1: float
    latency_ms: float
    change: str


@dataclass(frozen=True, slots=True)
class Refinement:
    """The result of a refinement.

    Attributes:
        path: from the start to the last network.
        reached: whether the last network is within the target.
        search: how the evaluations went.
    """

    path: tuple[Step, ...]
    reached: bool
    search: SearchResult


class NetAdapt:
    """A proposer (see :class:`nas.study.samplers.Proposer`) that walks from a network down to a latency.

    Args:
        neighbourhood: the space, without a budget: the way leads from above.
        objective: tells accuracy from utility.
        start: where to begin.
        target_ms: where to end.
        share: what each step saves, as a share of the first network's latency; 0.01 in MobileNetV3.
    """

    def __init__(
        self,
        neighbourhood: Neighbourhood,
        objective: Objective,
        start: Candidate,
        target_ms: float,
        share: float = 0.01,
    ) -> None:
        self.seen: set[Architecture] = set()
        self.path: list[Step] = []
        self._neighbourhood = neighbourhood
        self._objective = objective
        self._target_ms = target_ms
        self._saving_ms = share * start.latency.latency_ms
        self._current = start
        self._proposals: dict[str, Candidate] = {"": start}
        self._top1: dict[Architecture, float | None] = {}

    @property
    def reached(self) -> bool:
        """True if the network is within the target."""
        return bool(self.path) and self.path[-1].latency_ms <= self._target_ms

    @property
    def settled(self) -> int:
        """The number of proposals left of this step."""
        return sum(candidate.architecture not in self.seen for candidate in self._proposals.values())

    def propose(self) -> Candidate:
        """The next proposal of this step, or the first of the next.

        Raises:
            SpaceExhaustedError: if there is none, for now (others are still being evaluated) or at all.
        """
        while not self.reached:
            for candidate in self._proposals.values():
                if candidate.architecture not in self.seen:
                    self.seen.add(candidate.architecture)
                    return candidate
            if any(candidate.architecture not in self._top1 for candidate in self._proposals.values()):
                raise SpaceExhaustedError("NetAdapt waits for other evaluations")
            self._step()
        raise SpaceExhaustedError(f"NetAdapt reached {latency_text(self.path[-1].latency_ms)}")

    def observe(self, candidate: Candidate, values: Sequence[float] | None) -> None:
        """Learn the values of a candidate."""
        self.seen.add(candidate.architecture)
        factor = self._objective.factor(candidate.latency.latency_ms)
        self._top1[candidate.architecture] = None if values is None else values[0] / factor

    def _step(self) -> None:
        told = [
            (change, candidate, top1)
            for change, candidate in self._proposals.items()
            if (top1 := self._top1[candidate.architecture]) is not None
        ]
        if not told:
            raise SpaceExhaustedError(
                f"NetAdapt stops at {latency_text(self._current.latency.latency_ms)}: "
                "nothing is left to shrink"
            )

        def ratio(proposal: tuple[str, Candidate, float]) -> float:
            _, candidate, top1 = proposal
            saved_ms = self.path[-1].latency_ms - candidate.latency.latency_ms
            return (top1 - self.path[-1].top1) / saved_ms

        change, candidate, top1 = max(told, key=ratio) if self.path else told[0]
        self._current = candidate
        self.path.append(Step(candidate.architecture, top1, candidate.latency.latency_ms, change))
        self._proposals = dict(self._shrunk())

    def _shrunk(self) -> list[tuple[str, Candidate]]:
        """Each shrinkable parameter at the largest smaller value that saves enough."""
        found = []
        limit_ms = self._current.latency.latency_ms - self._saving_ms
        for name, value in self._current.parameters.items():
            if not _SHRINKABLE.fullmatch(name):
                continue
            smaller = [choice for choice in self._neighbourhood.choices[name] if float(choice) < float(value)]
            for choice in sorted(smaller, key=float, reverse=True):
                candidate = self._neighbourhood.realise(self._current.genes | {name: choice})
                if candidate.latency.latency_ms <= limit_ms:
                    found.append((f"{name} {value} -> {choice}", candidate))
                    break
        return found


def refine(
    study: optuna.Study,
    problem: Problem,
    start: Architecture,
    target_ms: float,
    share: float = 0.01,
    workers: int = 1,
    progress: Callable[[Progress], None] | None = None,
) -> Refinement:
    """Shrink a member of the space until it is within a latency.

    Args:
        study: takes the trials, and gives the accuracy of networks it holds already.
        problem: its space is where all proposals come from; its budget, limits and references do not count.
        start: the network to begin with.
        target_ms: the latency to reach.
        share: what each step saves, as a share of the first network's latency.
        workers: networks evaluated at once.
        progress: called a few times a second, and at the end.

    Raises:
        RefinementError: if the start is no member of the space or has no accuracy, or the share is no
            positive share.
    """
    if not 0 < share < 1:
        raise RefinementError(f"NetAdapt: the share of a step must be between 0 and 1, not {share:g}")
    neighbourhood = Neighbourhood(problem.space, problem.latency)
    first = neighbourhood.encode(start)
    if first is None:
        raise RefinementError(f"NetAdapt: the network {start.id} is not in the space {problem.space.name!r}")
    walk = NetAdapt(neighbourhood, problem.objective, first, target_ms, share)
    result = run_proposer(study, problem, walk, neighbourhood, workers, progress)
    if not walk.path:
        raise RefinementError(f"NetAdapt: the accuracy of the network {start.id} cannot be told")
    return Refinement(tuple(walk.path), walk.reached, result)
