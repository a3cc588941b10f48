"""A report as plain data: the networks of a study, its front and answers.

    report = report_of(read_study(Path("results/digits")))        # nas.page.reading
    for answer in report.answers:
        print(answer.reference.label, sentences.gain(answer), sentences.saving(answer))

Who is recommended is decided in :mod:`nas.page.recommendation`, what is said in :mod:`nas.page.sentences`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from nas.page.network_result import NetworkResult
from nas.page.recommendation import Answer, answer_beside, front_of, spread_out
from nas.spread import evenly_spread
from nas.study.provenance import LayerLatency, Provenance
from search_spaces.architecture import Architecture
from search_spaces.tasks import DEFAULT_CLASSES

if TYPE_CHECKING:
    import pandas

_TEXTS = frozenset(("id", "name", "label", "kind", "accuracy_source", "latency_source"))
_JOINT_NETWORKS = 100
# The source of an accuracy by the final recipe.
TRAINED = "trained"
# Of :meth:`Report.frame`, besides whether a network is on the front.
COLUMNS = (
    "id",
    "name",
    "kind",
    "top1",
    "deviation",
    "class_mean",
    "accuracy_source",
    "published",
    "latency_ms",
    "latency_source",
    "latency_error_ms",
    "p90_ms",
    "p99_ms",
    "energy_mj",
    "macs",
    "parameters",
    "model_size_mb",
    "peak_memory_mb",
    "resolution",
)


@dataclass(frozen=True, slots=True)
class Importance:
    """The share, 0 to 1, of the variation between the trials that one parameter explains."""

    parameter: str
    accuracy: float
    latency: float


@dataclass(frozen=True)
class Report:
    """One study, ready to be drawn.

    Attributes:
        name: name of the study.
        networks: all complete trials in the order of the study, then published references.
        failed: number of trials whose accuracy could not be told.
        stopped: number of candidates whose training was stopped on its way, as behind most others.
        foreign: number of complete trials that this program did not make; they are left out.
        failures: (reason, trials that failed for it), the most frequent reasons first.
        budget_ms: bound on latency, None without one.
        hypervolume: (trial number, share of the box between 0 and 100 % and between 0 ms and the budget
            that is dominated so far), one pair for each change and the last trial.
        importances: parameters by their importance for accuracy, most important first; empty where
            there are too few trials.
        provenance: what the search noted about its circumstances.
        third: name of a third objective beside accuracy and latency, None without one.
        limits: on costs besides latency, by their names.
        seed_scatter: of trained accuracies, one standard deviation in points; 0 where it is not known.
        caution: standard deviations that the search took off uncertain accuracies.
    """

    name: str
    networks: tuple[NetworkResult, ...]
    failed: int = 0
    stopped: int = 0
    foreign: int = 0
    failures: tuple[tuple[str, int], ...] = ()
    budget_ms: float | None = None
    hypervolume: tuple[tuple[int, float], ...] = ()
    importances: tuple[Importance, ...] = ()
    provenance: Provenance = field(default_factory=Provenance)
    third: str | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    seed_scatter: float = 0.0
    caution: float = 0.0

    def frame(
        self, networks: Sequence[NetworkResult] | None = None, columns: Sequence[str] = COLUMNS
    ) -> pandas.DataFrame:
        """Networks as a table to calculate with: a row each, numbers as numbers.

        Args:
            networks: which, in this order; None: all, in the order of the study.
            columns: which of :data:`COLUMNS`, or ``label``; costs that follow from a block table take time.

        Returns:
            These columns and ``on_front``, by number of the trial. Accuracies are in percent,
            latencies in milliseconds, sizes in megabytes; what is not known is missing.
        """
        import pandas  # not before a report is written

        chosen = self.networks if networks is None else networks
        on_front = {each.trial for each in self.front}
        trials = pandas.Index([each.trial for each in chosen], name="trial")
        cells = {name: [getattr(each, name) for each in chosen] for name in columns}
        frame = pandas.DataFrame(cells, index=trials)
        numbers = [name for name in columns if name not in _TEXTS]
        whole = dict.fromkeys(("macs", "parameters", "resolution"), "Int64")
        frame = frame.astype({name: whole.get(name, "float64") for name in numbers})
        return frame.assign(on_front=[each in on_front for each in trials])

    @cached_property
    def references(self) -> tuple[NetworkResult, ...]:
        """References by latency, also those above the budget."""
        found = (network for network in self.networks if network.kind == "reference")
        return tuple(sorted(found, key=lambda network: network.latency_ms))

    @cached_property
    def front_and_references(self) -> tuple[NetworkResult, ...]:
        """Members of the front and references, by latency, as tables show them."""
        found = {network.trial: network for network in (*self.front, *self.references)}
        return tuple(sorted(found.values(), key=lambda network: network.latency_ms))

    @cached_property
    def candidates(self) -> tuple[NetworkResult, ...]:
        """The networks that the search proposed."""
        return tuple(network for network in self.networks if network.kind != "reference")

    @cached_property
    def front(self) -> tuple[NetworkResult, ...]:
        """Networks within the budget that no other one dominates, by latency, references included.

        Where the search has timed its best networks end to end, or trained them to the end, these alone are
        recommended.
        """
        return front_of([each for each in self._recommendable if self.is_within_budget(each)], self.third)

    @cached_property
    def table_front(self) -> tuple[NetworkResult, ...]:
        """The front among all trials, whatever their latency comes from."""
        trials = (network for network in self.networks if network.trial >= 0)
        return front_of([each for each in trials if self.is_within_budget(each)], self.third)

    @cached_property
    def _recommendable(self) -> list[NetworkResult]:
        """The trials that were timed end to end and trained to the end; all while there are newer trials."""
        trials = found = [network for network in self.networks if network.trial >= 0]
        end_to_end, finished = self.provenance.end_to_end, self.provenance.trained
        if end_to_end and end_to_end.trials == len(trials):
            found = [network for network in found if network.latency_source == "measured"]
        if finished and finished.trials == len(trials):
            # Accuracies of brief trainings and predictions are not set against those of long ones.
            found = [network for network in found if network.accuracy_source == TRAINED]
        return found

    @property
    def percentile(self) -> int:
        """Percentile of end-to-end latencies that the budget is about."""
        return self.provenance.end_to_end.percentile if self.provenance.end_to_end else 50

    @cached_property
    def bound_ms(self) -> float | None:
        """The budget; where a reference gave it, as it was timed beside the others."""
        name = self.provenance.budget_name
        for network in self.references:
            if network.name == name and network.latency_source == "measured" and network.is_ours:
                return network.percentile_ms(self.percentile)
        return self.budget_ms

    def is_within_budget(self, network: NetworkResult) -> bool:
        """True if a network is as fast as it must be at the percentile that counts, and within all limits."""
        if any(network.cost(name) > most for name, most in self.limits.items()):
            return False
        measured = network.latency_source == "measured"
        bound_ms = self.bound_ms if measured else self.budget_ms
        return bound_ms is None or network.percentile_ms(self.percentile) <= bound_ms

    @cached_property
    def answers(self) -> tuple[Answer, ...]:
        """The answer to each reference: first the one that gave the budget, then by latency."""
        budget_name = self.provenance.budget_name
        ordered = sorted(self.references, key=lambda reference: reference.name != budget_name)
        return tuple(self.answer_at(reference, reference.latency_ms) for reference in ordered)

    def answer_at(self, reference: NetworkResult, latency_ms: float) -> Answer:
        """The answer to a reference within a latency, be it the reference's own or another."""
        recommendable = {network.trial for network in self._recommendable}
        known = (self.provenance.joint, self.caution, self.recipe)
        return answer_beside(reference, latency_ms, self.candidates, recommendable, *known)

    @cached_property
    def positions(self) -> dict[int, int]:
        """Where in :attr:`networks` the network of a trial is, by its number."""
        return {network.trial: position for position, network in enumerate(self.networks)}

    @property
    def recipe(self) -> str:
        """Name of the recipe of training that predicted accuracies are for, empty where there is none."""
        return str(self.provenance.accuracy.get("recipe") or "")

    @cached_property
    def layers(self) -> dict[str, LayerLatency]:
        """Layers by key, as far as the study kept them: one costs the same in every network."""
        return {each.key: each for layers in self.provenance.layers.values() for each in layers}

    @property
    def task(self) -> str:
        """The task of the networks if not classification, e.g. ``segmentation``; empty otherwise."""
        return self.provenance.task.name if self.provenance.task else ""

    @property
    def task_classes(self) -> int | None:
        """The number of classes of another task's networks, None where that is torchvision's number."""
        task = self.provenance.task
        return None if task is None or task.classes == DEFAULT_CLASSES[task.name] else task.classes

    @property
    def compared(self) -> dict[str, Architecture]:
        """By id, the networks whose predictions are to be known together: front, references, answers."""
        found = [each for each in self.table_front if each.kind != "reference"]
        wanted = [*evenly_spread(found, _JOINT_NETWORKS), *self.front, *self.references]
        wanted += [each for answer in self.answers for each in (answer.as_fast, answer.as_accurate) if each]
        return {
            each.id: each.architecture
            for each in wanted
            if each.architecture and each.accuracy_source == "predicted"
        }

    @property
    def title(self) -> str:
        """One line: device, runtime, precision, threads, date; empty where unknown."""
        return self.provenance.latency.title or self.provenance.hardware or ""

    def source_counts(self, attribute: str) -> dict[str, int]:
        """The number of networks by ``accuracy_source`` or ``latency_source``."""
        return dict(Counter(str(getattr(network, attribute)) for network in self.networks))

    def worth_timing(self, count: int) -> dict[str, Architecture]:
        """The networks that deserve to be timed end to end, by id: references, and the front thinned out.

        Of the front, ``count`` networks evenly spread over its latencies, and beside the budget and each
        reference a few that are just fast enough.
        """
        found = [each for each in self.table_front if each.kind != "reference" and each.architecture]
        bounds = [(each.latency_ms, each.is_ours) for each in self.references]
        bounds += [(self.budget_ms, True)] if self.budget_ms else []
        chosen = [*self.references, *spread_out(found, count, bounds)]
        return {each.id: each.architecture for each in chosen if each.architecture}
