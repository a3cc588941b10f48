"""Everything a report says, computed once from the study alone, as plain data.

    study = read_study(Path("results/digits"))
    report = report_of(study)
    for answer in report.answers:
        print(answer.reference.label, answer.gain, answer.saving)

How it is drawn and written is the business of the other modules of this package.
"""

from __future__ import annotations

import bisect
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from nas.accuracy.joint import JointPrediction
from nas.accuracy.recipes import DESCRIPTIONS
from nas.accuracy.source import Judgement
from nas.cost import BYTES_PER_VALUE, cost
from nas.latency.table import MAX_MS
from nas.study.journal import JournalReader, storage_of
from nas.study.objective import THIRD_COSTS
from nas.study.pareto import cost_bounds, dominated_share, front
from nas.study.storage import open_storage
from nas.study.trial import Trial, checked_resolution, checked_top1, remeasured, scatter_of, trained
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError, shorten
from search_spaces.gate import Gate
from search_spaces.references import UnknownReferenceError, published_top1
from search_spaces.space import SearchSpace
from search_spaces.tasks import DEFAULT_CLASSES

if TYPE_CHECKING:
    import pandas

_log = logging.getLogger(__name__)
_TEXTS = frozenset(("id", "name", "kind", "accuracy_source", "latency_source"))
STUDY_FILE = "study.journal"
# Study attribute with references that are no trials: networks of other families, measured end to end,
# with the accuracy their authors publish; see nas.page.torchvision_reference.
PUBLISHED = "published"
# Study attribute and key of the provenance: predictions of the front and the references with how their errors
# go together, see nas.accuracy.joint.
JOINT = "joint"
_JOINT_NETWORKS = 100
MIXED_KINDS = (
    "A predicted accuracy is for one recipe of training, a published one for its authors': they are not "
    "compared, as recipes differ by more than networks do."
)
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
    "macs",
    "parameters",
    "model_size_mb",
    "peak_memory_mb",
    "resolution",
)
# fANOVA on this many trials takes a few seconds; on all of a long study it would take minutes.
_TRIALS_FOR_IMPORTANCE = 300
_FEWEST_FOR_IMPORTANCE = 20
# The accuracy of a network that was trained by the final recipe, and the section of provenance about it.
TRAINED = "trained"

_SHOWN_FAILURES = 5
# Networks of the front just below a reference's latency that are timed with it.
_NEAREST = 6
# With three objectives the hypervolume is computed this often.
_VOLUMES = 50


class ReportError(InputError):
    """A study that no report can be made of. The message says why."""


@dataclass(frozen=True, slots=True)
class NetworkResult:
    """What the study knows of one network.

    Attributes:
        trial: number of its trial, negative for references whose accuracy is published, which are no trials.
        id: id of its architecture.
        kind: ``candidate`` or ``reference``.
        name: name of a reference, else None.
        top1: accuracy in percent.
        judged_top1: accuracy the search went by: less where the objective is cautious.
        deviation: one standard deviation of the accuracy in points, None where unknown.
        accuracy_source: ``measured``, ``given``, ``predicted``, ``published`` or ``proxy``; ``trained`` after
            the final recipe.
        latency_ms: milliseconds for one image; the median where it was timed end to end.
        latency_source: ``measured`` end to end, or the worst of its layers: ``table`` where all were
            measured, ``predicted``, ``estimated``.
        macs: multiply-accumulates.
        parameters: trainable parameters.
        resolution: side of the input image in pixels, None where unknown.
        architecture: its block table, None for a network that is not of the family.
        published: accuracy in percent that its authors report, None where there is none: it is for their
            recipe, and stands beside a prediction without being compared with it.
        latency_error_ms: one standard deviation of the latency, None where unknown.
        p90_ms: 90th percentile of the runs timed end to end, None where there were none.
        p99_ms: 99th percentile.
        judgement: what a trained network was judged on, None for others.
        bytes_per_value: of its weights and feature maps.
    """

    trial: int
    id: str
    kind: str
    name: str | None
    top1: float
    judged_top1: float
    deviation: float | None
    accuracy_source: str
    latency_ms: float
    latency_source: str
    macs: int
    parameters: int
    resolution: int | None
    architecture: Architecture | None
    published: float | None = None
    latency_error_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    judgement: Judgement | None = None
    bytes_per_value: int = 4

    @property
    def latency(self) -> str:
        """E.g. ``8.58 ± 0.17 ms``."""
        error = self.latency_error_ms
        return f"{self.latency_ms:.2f}{'' if not error else f' ± {error:.2f}'} ms"

    def percentile_ms(self, percentile: int) -> float:
        """Latency at a percentile, 50, 90 or 99; the latency there is where it was not timed end to end."""
        found = {50: self.latency_ms, 90: self.p90_ms, 99: self.p99_ms}[percentile]
        return self.latency_ms if found is None else found

    def cost(self, name: str) -> float:
        """What it costs in an objective: latency, or one of :data:`nas.study.objective.THIRD_COSTS`."""
        return float(getattr(self, name) or 0.0)

    @property
    def model_size_mb(self) -> float:
        """Megabytes of its weights."""
        return self.parameters * self.bytes_per_value / 1e6

    @property
    def peak_memory_mb(self) -> float | None:
        """Megabytes of feature maps held at once, None for a network that is not of the family."""
        if self.architecture is None:
            return None
        return cost(self.architecture).peak_values * self.bytes_per_value / 1e6

    @property
    def is_ours(self) -> bool:
        """Whether it was timed like the candidates: all but what torchvision and timm build."""
        return self.trial >= 0 or self.architecture is not None

    @property
    def class_mean(self) -> float | None:
        """Mean accuracy of the classes in percent, None where the network was not judged here."""
        return self.judgement.class_mean if self.judgement else None

    @property
    def label(self) -> str:
        """Name of a reference, id of a candidate."""
        return self.name or self.id

    @property
    def accuracy(self) -> str:
        """E.g. ``76.94 ± 0.80 %``; a training-free score is no percentage: ``score 84.31``."""
        if self.accuracy_source == "proxy":
            return f"score {self.top1:.2f}"
        deviation = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.top1:.2f}{deviation} %"


@dataclass(frozen=True, slots=True)
class Gain:
    """How much more accurate a network is than a reference, both trained once by the same recipe.

    Attributes:
        difference: predicted, points.
        deviation: its standard deviation, points; None where nothing is known of it.
        disappointment: how much of the difference is expected to come from choosing the best of many
            predictions, points.
        choices: of how many it was the best.
        unit: of all of these.
    """

    difference: float
    deviation: float | None = None
    disappointment: float = 0.0
    choices: int = 1
    unit: str = "points"

    @property
    def points(self) -> float:
        """The difference less what choosing adds to it."""
        return self.difference - self.disappointment

    @property
    def bound(self) -> float:
        """:attr:`points` less one standard deviation."""
        return self.points - (self.deviation or 0.0)

    @property
    def text(self) -> str:
        """E.g. ``at least +0.7 points``."""
        if self.deviation is None:
            return f"{signed(self.points, 1)} {self.unit}"
        if self.bound > 0:
            return f"at least {signed(self.bound, 1)} points"
        return f"{signed(self.points, 1)} ± {self.deviation:.1f} points, no sure gain"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the search found in comparison with one reference.

    Attributes:
        reference: the network to beat.
        as_fast: the most accurate candidate that is not slower, None if there is none.
        as_accurate: the fastest candidate that is not less accurate, None if there is none.
        gained: what ``as_fast`` gains, None without one and where accuracies are of different kinds.
        recipe: what predictions are for, empty where nothing is known of it.
    """

    reference: NetworkResult
    as_fast: NetworkResult | None
    as_accurate: NetworkResult | None
    gained: Gain | None = None
    recipe: str = ""

    @property
    def points(self) -> float | None:
        """Percentage points of accuracy gained at the reference's latency."""
        return None if self.gained is None else self.gained.points

    @property
    def is_gain(self) -> bool:
        """Whether something is gained at the reference's latency beyond one standard deviation."""
        return self.gained is not None and self.gained.bound > 0

    @property
    def latency_change(self) -> float | None:
        """Relative change of latency at the reference's accuracy; -0.25 is a quarter less."""
        if self.as_accurate is None or self._differs(self.as_accurate):
            return None
        return self.as_accurate.latency_ms / self.reference.latency_ms - 1

    @property
    def mixes_kinds(self) -> bool:
        """Whether accuracies are of different kinds, predicted and published: they are not compared."""
        return any(self._differs(each) for each in (self.as_fast, self.as_accurate) if each is not None)

    def _differs(self, found: NetworkResult) -> bool:
        return found.accuracy_source != self.reference.accuracy_source

    def evidence(self, found: NetworkResult) -> str:
        """Which numbers stand behind a gain."""
        reference = self.reference
        if self._differs(found):
            return (
                f"{found.accuracy_source} {found.accuracy}; {reference.accuracy_source} {reference.accuracy}"
            )
        kind = found.accuracy_source + (f" for the recipe {self.recipe}" if self.recipe else "")
        text = f"{found.accuracy} against {reference.accuracy}, both {kind}"
        if self.gained and found is self.as_fast and self.gained.deviation is not None:
            gained = self.gained
            text += f": {signed(gained.points, 1)} ± {gained.deviation:.1f}"
            if gained.disappointment >= 0.05:
                text += f" after {gained.disappointment:.1f} for choosing the best of {gained.choices}"
        if reference.published is not None and reference.accuracy_source == "predicted":
            text += f" (published, with its authors' training: {reference.published:g} %)"
        return text

    @property
    def gain(self) -> str:
        """What is gained at the reference's latency, e.g. ``at least +0.7 points``."""
        if self.as_fast is None:
            return "nothing found is as fast"
        return "not compared" if self.gained is None else self.gained.text

    @property
    def saving(self) -> str:
        """What is saved at the reference's accuracy, e.g. ``−25 % latency``."""
        if self.as_accurate is None:
            return "nothing found is as accurate"
        if self.latency_change is None:
            return "not compared"
        return f"{signed(100 * self.latency_change, 0)} % latency"


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


@dataclass(frozen=True, slots=True)
class LayerLatency:
    """A layer's share of the latency of any network that contains it."""

    latency_ms: float
    source: str


@dataclass(frozen=True, slots=True)
class Importance:
    """How much of the variation between the trials one parameter explains, as shares of 1."""

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
        layers: latency of single layers, by layer key, as far as the study kept them.
        provenance: what the search noted about its circumstances; any field may be missing.
        joint: predictions of the front and the references together, None where there are none.
        third: name of a third objective beside accuracy and latency, None without one.
        limits: on costs besides latency, by their names.
        seed_scatter: of trained accuracies, one standard deviation in points; 0 where it is not known.
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
    layers: Mapping[str, LayerLatency] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    joint: JointPrediction | None = None
    third: str | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    seed_scatter: float = 0.0

    def frame(self, networks: Sequence[NetworkResult] | None = None) -> pandas.DataFrame:
        """Networks as a table to calculate with: a row each, numbers as numbers.

        Args:
            networks: which, in this order; None: all, in the order of the study.

        Returns:
            The columns :data:`COLUMNS` and ``on_front``, by number of the trial. Accuracies are in percent,
            latencies in milliseconds, sizes in megabytes; what is not known is missing.
        """
        import pandas  # of a report that is only drawn nobody needs it

        chosen = self.networks if networks is None else networks
        on_front = {each.trial for each in self.front}
        trials = pandas.Index([each.trial for each in chosen], name="trial")
        columns = {name: [getattr(each, name) for each in chosen] for name in COLUMNS}
        frame = pandas.DataFrame(columns, index=trials)
        numbers = [name for name in COLUMNS if name not in _TEXTS]
        whole = dict.fromkeys(("macs", "parameters", "resolution"), "Int64")
        frame = frame.astype({name: whole.get(name, "float64") for name in numbers})
        return frame.assign(on_front=[each in on_front for each in trials])

    @cached_property
    def references(self) -> tuple[NetworkResult, ...]:
        """References by latency, also those above the budget."""
        found = (network for network in self.networks if network.kind == "reference")
        return tuple(sorted(found, key=lambda network: network.latency_ms))

    @cached_property
    def candidates(self) -> tuple[NetworkResult, ...]:
        """What the search proposed."""
        return tuple(network for network in self.networks if network.kind != "reference")

    @cached_property
    def front(self) -> tuple[NetworkResult, ...]:
        """Networks within the budget that no other one dominates, by latency, references included.

        Where the search has timed its best networks end to end, or trained them to the end, these alone are
        recommended.
        """
        return self._front(self._recommendable)

    @cached_property
    def table_front(self) -> tuple[NetworkResult, ...]:
        """The front among all trials, whatever their latency comes from."""
        return self._front([network for network in self.networks if network.trial >= 0])

    def _front(self, networks: Sequence[NetworkResult]) -> tuple[NetworkResult, ...]:
        within = [network for network in networks if self.is_within_budget(network)]
        if not within:
            return ()
        chosen = [within[index] for index in front(_losses(within, self.third))]
        return tuple(sorted(chosen, key=lambda network: network.latency_ms))

    @cached_property
    def _recommendable(self) -> list[NetworkResult]:
        """The trials that were timed end to end and trained to the end; all while there are newer trials."""
        trials = found = [network for network in self.networks if network.trial >= 0]
        if section(self.provenance, "end_to_end").get("trials") == len(trials):
            found = [network for network in found if network.latency_source == "measured"]
        if section(self.provenance, TRAINED).get("trials") == len(trials):
            # Accuracies of brief trainings and predictions are not set against those of long ones.
            found = [network for network in found if network.accuracy_source == TRAINED]
        return found

    @property
    def percentile(self) -> int:
        """Percentile of end-to-end latencies that the budget is about."""
        found = section(self.provenance, "end_to_end").get("percentile")
        return found if found in (50, 90, 99) else 50

    @cached_property
    def bound_ms(self) -> float | None:
        """The budget; where a reference gave it, as it was timed beside the others."""
        name = self.provenance.get("budget_name")
        for network in self.references:
            if network.name == name and network.latency_source == "measured" and network.is_ours:
                return network.percentile_ms(self.percentile)
        return self.budget_ms

    @property
    def budget_margin(self) -> float:
        """Share of the budget that was kept free."""
        found = self.provenance.get("budget_margin")
        return float(found) if isinstance(found, float | int) and 0 < found < 1 else 0.0

    @property
    def margin_note(self) -> str:
        """What became of a budget that is kept a share free, in words; empty where none is."""
        margin = self.budget_margin
        if not margin or self.budget_ms is None:
            return ""
        return f"{self.budget_ms / (1 - margin):.4g} ms less {100 * margin:.3g} % kept free"

    def is_within_budget(self, network: NetworkResult) -> bool:
        """Whether a network is as fast as it must be at the percentile that counts, and within all limits."""
        if any(network.cost(name) > most for name, most in self.limits.items()):
            return False
        measured = network.latency_source == "measured"
        bound_ms = self.bound_ms if measured else self.budget_ms
        return bound_ms is None or network.percentile_ms(self.percentile) <= bound_ms

    @cached_property
    def answers(self) -> tuple[Answer, ...]:
        """What the study found beside each reference: first the one that gave the budget, then by latency."""
        budget_name = self.provenance.get("budget_name")
        ordered = sorted(self.references, key=lambda reference: reference.name != budget_name)
        return tuple(self.answer_at(reference, reference.latency_ms) for reference in ordered)

    def answer_at(self, reference: NetworkResult, latency_ms: float) -> Answer:
        """What the study found beside a reference within a latency, be it the reference's own or another."""
        recommendable = {network.trial for network in self._recommendable}
        known = (self.joint, self.caution, self.recipe)
        return _answer(reference, latency_ms, self.candidates, recommendable, *known)

    @cached_property
    def positions(self) -> dict[int, int]:
        """Where in :attr:`networks` the network of a trial is, by its number."""
        return {network.trial: position for position, network in enumerate(self.networks)}

    @property
    def caution(self) -> float:
        """How many deviations the search took off uncertain accuracies."""
        for network in self.networks:
            if network.deviation:
                return (network.top1 - network.judged_top1) / network.deviation
        return 0.0

    @property
    def recipe(self) -> str:
        """Name of the recipe of training that predicted accuracies are for, empty where there is none."""
        return str(section(self.provenance, "accuracy").get("recipe") or "")

    @property
    def published_wins(self) -> str:
        """Which published networks have more than what was found at their latency; empty if none has.

        Recipes differ, so this compares no architectures; but whoever takes the published weights has them.
        """
        found = [
            f"{answer.reference.label} ({answer.reference.accuracy} against {answer.as_fast.accuracy})"
            for answer in self.answers
            if answer.as_fast
            and answer.reference.accuracy_source == "published"
            and answer.as_fast.accuracy_source != "proxy"
            and answer.reference.top1 > answer.as_fast.top1
        ]
        if not found:
            return ""
        return (
            "Published networks that have more, by recipes of their own, than anything found at their "
            f"latency: {'; '.join(found)}."
        )

    @property
    def recipe_note(self) -> str:
        """A sentence on what predicted accuracies are for, empty where there are none."""
        if not self.recipe:
            return ""
        described = DESCRIPTIONS.get(self.recipe, "")
        return f"Predicted accuracies are for the recipe {self.recipe}" + (
            f": {described}." if described else "."
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what trained networks tell apart, in the order of their outputs; empty where unknown."""
        found = self.provenance.get("classes")
        return tuple(map(str, found)) if isinstance(found, list) else ()

    @property
    def judgement_note(self) -> str:
        """On how many images trained networks were judged, and what chance would get; empty without any."""
        trained_ones = [each for each in self.networks if each.accuracy_source == TRAINED]
        judged = [each.judgement for each in trained_ones or self.networks if each.judgement]
        if not judged:
            return ""
        best = max(judged, key=lambda each: each.top1)
        note = (
            f"Judged on {best.images:,} images of {_few(self.classes)}{best.majority:.1f} % of them "
            f"{best.majority_class}: always answering that is chance. The best network has {best.top1:.1f} ± "
            f"{best.deviation:.1f} %, {best.class_mean:.1f} % as the mean of the classes."
        )
        if best.above_chance:
            return note
        return f"{note} That is not above chance: accuracies here tell nothing apart (see dataset.balanced)."

    @property
    def training_note(self) -> str:
        """A sentence on which networks were trained to the end, empty where none was."""
        count = self.source_counts("accuracy_source").get(TRAINED, 0)
        if not count:
            return ""
        known = section(self.provenance, TRAINED)
        epochs = section(known, "recipe").get("epochs")
        images = known.get("judged_on") or "images that training never saw"
        return (
            f"{count} networks were trained to the end{f', {epochs} epochs each' if epochs else ''}, and "
            f"judged on {images}: these accuracies are called {TRAINED}, and "
            "the front consists of these networks."
        )

    @property
    def scatter_note(self) -> str:
        """How much accuracies scatter with the seed of training, empty where nobody knows."""
        if not self.seed_scatter:
            return ""
        return (
            f"Trained again with other seeds, networks of the front scatter by {self.seed_scatter:.2f} "
            "points; the ± of measured accuracies holds that beside what the number of images leaves open."
        )

    @property
    def stopped_note(self) -> str:
        """How many trainings were stopped on their way, empty if none was."""
        if not self.stopped:
            return ""
        return (
            f"{self.stopped:,} candidates more were stopped on their way, as behind most others in accuracy "
            "and latency after as many epochs."
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what accuracies are worth."""
        notes = (
            self.task_note,
            self.recipe_note,
            self.judgement_note,
            self.training_note,
            self.scatter_note,
            self.stopped_note,
        )
        return tuple(each for each in notes if each)

    @property
    def task(self) -> str:
        """What networks are for if not for classification, e.g. ``segmentation``; empty otherwise."""
        name = section(self.provenance, "task").get("name")
        return name if isinstance(name, str) and name in DEFAULT_CLASSES else ""

    @property
    def task_classes(self) -> int | None:
        """What networks for another task tell apart, None where that is torchvision's number."""
        classes = section(self.provenance, "task").get("classes")
        usual = not self.task or classes == DEFAULT_CLASSES[self.task]
        return classes if isinstance(classes, int) and not usual else None

    @property
    def task_note(self) -> str:
        """What latencies and accuracies are of, where networks are for another task than classification."""
        if not self.task:
            return ""
        found = section(self.provenance, "task")
        numbers = [found.get(name) for name in ("classes", "models", "error_percent", "worst_percent")]
        known = [float(each) for each in numbers if isinstance(each, int | float)]
        if len(known) < len(numbers):
            return f"Latencies are of whole models for {self.task}, accuracies of classification."
        classes, models, error, worst = known
        without = ", boxes neither decoded nor sorted out" if self.task == "detection" else ""
        return (
            f"Latencies are of whole models for {self.task} ({classes:,.0f} classes{without}); what the "
            f"table says of them was {error:.1f} % off on average, {worst:.1f} % at worst, on {models:,.0f} "
            "timed end to end. Accuracies, MACs and parameters are of classification: a proxy, without the "
            "head."
        )

    @property
    def compared(self) -> dict[str, Architecture]:
        """By id, the networks whose predictions are to be known together: front, references, answers."""
        found = [each for each in self.table_front if each.kind != "reference"]
        numbers = np.linspace(0, len(found) - 1, min(len(found), _JOINT_NETWORKS)).round().astype(int)
        wanted = [*(found[number] for number in numbers), *self.front, *self.references]
        wanted += [each for answer in self.answers for each in (answer.as_fast, answer.as_accurate) if each]
        return {
            each.id: each.architecture
            for each in wanted
            if each.architecture and each.accuracy_source == "predicted"
        }

    @property
    def accuracy_label(self) -> str:
        """What the accuracies of this study are."""
        scored = any(network.accuracy_source == "proxy" for network in self.networks)
        return "training-free score" if scored else "top-1 accuracy in %"

    @property
    def title(self) -> str:
        """One line: device, runtime, precision, threads, date; empty where unknown."""
        return str(section(self.provenance, "latency").get("title") or self.provenance.get("hardware") or "")

    def source_counts(self, attribute: str) -> dict[str, int]:
        """How many networks have their ``accuracy_source`` or ``latency_source`` from where."""
        return dict(Counter(str(getattr(network, attribute)) for network in self.networks))


def signed(value: float, digits: int) -> str:
    """A number with its sign, a real minus, and no negative zero."""
    text = f"{value:+.{digits}f}"
    if float(text) == 0:
        text = "±" + text[1:]
    return text.replace("-", "−")


def _few(classes: Sequence[str]) -> str:
    if not classes:
        return "all classes, "
    return f"{len(classes)} classes ({shorten(', '.join(classes), 80)}), "


def section(provenance: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A mapping inside the provenance, empty where it is missing."""
    value = provenance.get(name)
    return value if isinstance(value, Mapping) else {}


# -- reading ---------------------------------------------------------------------------------------


def read_study(
    folder: Path, storage: str | None = None, say: Callable[[str], None] = _log.warning
) -> optuna.Study:
    """The study kept in a folder, to be read; a search may be writing to it meanwhile.

    Args:
        folder: ``results/<study>``, holds ``study.journal``.
        storage: database the study of the folder's name is kept in, instead of the file.
        say: told in one line when that database is away.

    Raises:
        ReportError: if there is no study.
        nas.study.storage.StorageError: if the database does not answer.
    """
    name = folder.resolve().name
    opened: BaseStorage
    if storage is not None:
        opened = open_storage(storage, say=say)
    else:
        path = folder / STUDY_FILE
        if not path.is_file():
            raise ReportError(
                f"there is no study in {folder}: it has no {STUDY_FILE}; name the folder of a study, "
                "or its database with storage=postgresql://..."
            )
        opened = storage_of(JournalReader(path, ReportError), Gate(str(path), ReportError))
    names = optuna.get_all_study_names(opened)
    if name not in names:
        if storage is not None or len(names) != 1:
            raise ReportError(f"there is no study {name!r} here; there are: {', '.join(names) or 'none'}")
        name = names[0]
    return optuna.load_study(study_name=name, storage=opened)


def report_of(study: optuna.Study, importances: bool = True) -> Report:
    """Compute everything a report shows.

    Args:
        study: made by :func:`nas.study.loop.run_search`, may be in progress.
        importances: whether to compute parameter importances, which takes some seconds.

    Raises:
        ReportError: if the study was not made by this project or holds no complete trial.
    """
    attributes = study.user_attrs
    if "space" not in attributes:
        raise ReportError(
            f"study {study.study_name!r} was not made by this project: it names no search space"
        )
    gate = Gate(f"the study {study.study_name!r}", ReportError)
    with gate.reading():
        return _report(gate, study, attributes, importances)


def _report(gate: Gate, study: optuna.Study, attributes: Mapping[str, Any], importances: bool) -> Report:
    space = SearchSpace.from_dict(gate.plain(attributes["space"]))
    trials = study.get_trials(deepcopy=False)
    ended = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    # Somebody may have added trials of their own with plain Optuna.
    complete = [(trial, record) for trial in ended if (record := _told(trial, gate)) is not None]
    if not complete:
        raise ReportError(
            f"study {study.study_name!r} holds no complete trial yet"
            + (f", but {len(ended)} that this program did not make" if ended else "")
        )
    objectives = study.metric_names or ["top1", "latency_ms"]
    third = gate.choice("a third objective", objectives[2], THIRD_COSTS) if len(objectives) > 2 else None
    caution = gate.mapping(attributes.get("fingerprint") or {}, "fingerprint").get("search.caution", 0.0)
    provenance = gate.mapping(attributes.get("provenance") or {}, "provenance")
    known = _Known(
        gate.number("search.caution", caution, 0, 1_000),
        remeasured(attributes),
        # While networks are being trained, the report is that of the search.
        trained(attributes) if section(provenance, TRAINED) else {},
        gate.number("seed_scatter", scatter_of(attributes).get("points", 0.0), 0, 100),
        gate.mapping(section(provenance, "latency").get("error_percent") or {}, "error_percent"),
        BYTES_PER_VALUE.get(str(section(provenance, "latency").get("precision")), 4),
    )
    networks = tuple(_network(gate, trial, record, space, known) for trial, record in complete)
    budget = provenance.get("budget_ms")
    budget_ms = None if budget is None else gate.number("budget_ms", budget, 1e-9, MAX_MS)
    finished = tuple(_finished(gate, each, known) for each in networks)
    return Report(
        name=study.study_name,
        networks=finished + _published(gate, attributes.get(PUBLISHED) or {}, known),
        failed=sum(trial.state == TrialState.FAIL for trial in trials),
        stopped=sum(trial.state == TrialState.PRUNED for trial in trials),
        foreign=len(ended) - len(complete),
        failures=_failures(trials),
        budget_ms=budget_ms,
        hypervolume=_hypervolume_over_trials(networks, budget_ms, third),
        importances=parameter_importances([trial for trial, _ in complete]) if importances else (),
        layers=_layer_latencies(section(provenance, "layers")),
        provenance=provenance,
        limits=_limits(gate, attributes.get("fingerprint") or {}),
        seed_scatter=known.scatter,
        joint=JointPrediction.from_dict(provenance[JOINT]) if provenance.get(JOINT) else None,
        third=third,
    )


def _limits(gate: Gate, fingerprint: Any) -> dict[str, float]:
    found = gate.mapping(fingerprint, "fingerprint")
    names = {name: f"search.limits.{name}" for name in THIRD_COSTS}
    return {name: gate.number(key, found[key], 0) for name, key in names.items() if key in found}


@dataclass(frozen=True, slots=True)
class _Known:
    """What a study says of all its networks.

    Attributes:
        caution: standard deviations taken off uncertain accuracies.
        remeasured: latencies by architecture id, see :mod:`nas.study.trial`.
        trained: how well networks did that were trained to the end, by architecture id.
        scatter: of trained accuracies with the seed, one standard deviation in points.
        error_percent: standard deviation of latencies by source.
        bytes_per_value: of weights and feature maps.
    """

    caution: float
    remeasured: Mapping[str, Any]
    trained: Mapping[str, Any]
    scatter: float
    error_percent: Mapping[str, Any]
    bytes_per_value: int


def _told(trial: FrozenTrial, gate: Gate) -> Trial | None:
    """What a trial of ours says, once its accuracy is told."""
    record = Trial.of(trial, gate)
    return None if record is None or record.accuracy is None else record


def _failures(trials: Sequence[FrozenTrial]) -> tuple[tuple[str, int], ...]:
    errors = (
        str(trial.user_attrs["error"])
        for trial in trials
        if trial.state == TrialState.FAIL and "error" in trial.user_attrs
    )
    # Networks fail for one reason in different rows of their tables.
    reasons = Counter(shorten(re.sub(r"^row \d+: ", "", error)) for error in errors)
    return tuple(reasons.most_common(_SHOWN_FAILURES))


def _network(
    gate: Gate, trial: FrozenTrial, record: Trial, space: SearchSpace, known: _Known
) -> NetworkResult:
    accuracy = record.accuracy
    assert accuracy is not None
    # Of older studies: no trial knows more than what the table says.
    source = "table" if record.latency_source == "measured" else record.latency_source
    latency: Mapping[str, Any] = {"latency_ms": record.latency_ms, "latency_source": source}
    if record.architecture in known.remeasured:
        latency = gate.mapping(known.remeasured[record.architecture], "a latency")
    deviation = accuracy.deviation
    if deviation is not None and accuracy.source == "measured":
        deviation = math.hypot(deviation, known.scatter)
    architecture = record.table
    if architecture is None and (trial.params or (record.kind != "reference" and not space.parameters())):
        architecture = space.build(trial.params)
    return NetworkResult(
        trial=trial.number,
        id=record.architecture,
        kind=record.kind,
        name=record.name,
        top1=accuracy.top1,
        bytes_per_value=known.bytes_per_value,
        # What the search went by, also where the value of the trial is a product of it.
        judged_top1=accuracy.top1 - known.caution * (deviation or 0.0),
        deviation=deviation,
        accuracy_source=accuracy.source,
        macs=record.macs,
        parameters=record.parameters,
        resolution=architecture.resolution if architecture else record.resolution,
        architecture=architecture,
        published=_published_top1(record.name, architecture),
        judgement=accuracy.judgement,
        **_latency(gate, latency),
        **_percentiles(gate, latency, known.error_percent),
    )


def _finished(gate: Gate, network: NetworkResult, known: _Known) -> NetworkResult:
    """The network with the accuracy of its final training, where it had one."""
    if network.id not in known.trained:
        return network
    judgement = Judgement.from_dict(gate.mapping(known.trained[network.id])["judgement"], gate)
    return replace(
        network,
        top1=judgement.top1,
        judged_top1=judgement.top1 - known.caution * judgement.deviation,
        deviation=judgement.deviation,
        accuracy_source=TRAINED,
        judgement=judgement,
    )


def _percentiles(gate: Gate, latency: Mapping[str, Any], error_percent: Mapping[str, Any]) -> dict[str, Any]:
    """Percentiles and error of a latency, as far as they are known."""
    names = ("latency_error_ms", "p90_ms", "p99_ms")
    found = {
        name: gate.number(name, latency[name], 0, MAX_MS) for name in names if latency.get(name) is not None
    }
    percent = error_percent.get(latency["latency_source"])
    if percent is not None and "latency_error_ms" not in found:
        percent = gate.number("error_percent", percent, 0, 1_000)
        found["latency_error_ms"] = gate.number("latency_ms", latency["latency_ms"]) * percent / 100
    return found


def _published_top1(name: str | None, architecture: Architecture | None) -> float | None:
    if name is None or architecture is None or architecture.classes != 1000:
        return None
    try:
        return published_top1(name, architecture.resolution)
    except UnknownReferenceError:
        return None


class _LatencyFields(TypedDict):
    latency_ms: float
    latency_source: str


def _latency(gate: Gate, attributes: Mapping[str, Any]) -> _LatencyFields:
    return {
        "latency_ms": gate.number("latency_ms", attributes["latency_ms"], 1e-9, MAX_MS),
        "latency_source": gate.string("latency_source", attributes["latency_source"], 30),
    }


def _published(gate: Gate, references: Any, known: _Known) -> tuple[NetworkResult, ...]:
    found = []
    for number, (name, data) in enumerate(gate.mapping(references, PUBLISHED).items(), start=1):
        each = gate.mapping(data, name)
        top1 = checked_top1(gate, each["top1"], "published")
        # Of block tables of ours, which are timed like any other.
        architecture = Architecture.from_dict(each["table"]) if each.get("table") else None
        identity = architecture.id if architecture else name
        latency = gate.mapping(known.remeasured.get(identity) or each, "a latency")
        found.append(
            NetworkResult(
                trial=-number,
                id=identity,
                kind="reference",
                name=name,
                top1=top1,
                judged_top1=top1,
                deviation=None,
                accuracy_source="published",
                macs=gate.integer("macs", each["macs"]),
                parameters=gate.integer("parameters", each["parameters"]),
                resolution=checked_resolution(gate, each["resolution"]),
                architecture=architecture,
                **_latency(gate, latency),
                **_percentiles(gate, latency, known.error_percent),
            )
        )
    return tuple(_finished(gate, each, known) for each in found)


def _layer_latencies(networks: Mapping[str, Any]) -> dict[str, LayerLatency]:
    # A layer costs the same in every network, so what is known of one network helps to explain others.
    return {
        str(layer["key"]): LayerLatency(float(layer["latency_ms"]), str(layer["source"]))
        for layers in networks.values()
        for layer in layers
    }


# -- computing -------------------------------------------------------------------------------------


def _losses(networks: Sequence[NetworkResult], third: str | None) -> np.ndarray[Any, np.dtype[np.float64]]:
    costs = ("latency_ms", third) if third else ("latency_ms",)
    return np.array([[-network.judged_top1, *(network.cost(name) for name in costs)] for network in networks])


def _answer(
    reference: NetworkResult,
    latency_ms: float,
    candidates: Iterable[NetworkResult],
    recommendable: Container[int],
    joint: JointPrediction | None,
    caution: float,
    recipe: str,
) -> Answer:
    as_fast = as_accurate = None
    choices = []
    for candidate in candidates:
        as_fast_as_it = candidate.latency_ms <= latency_ms
        if as_fast_as_it:
            # What was passed over was a choice, too.
            choices.append(candidate.id)
        if candidate.trial not in recommendable:
            continue
        if as_fast_as_it and (as_fast is None or candidate.judged_top1 > as_fast.judged_top1):
            as_fast = candidate
        if candidate.judged_top1 >= reference.judged_top1 and (
            as_accurate is None or candidate.latency_ms < as_accurate.latency_ms
        ):
            as_accurate = candidate
    gained = None
    if as_fast is not None and as_fast.accuracy_source == reference.accuracy_source:
        gained = _gain(reference, as_fast, choices, joint, caution)
    return Answer(reference, as_fast, as_accurate, gained, recipe)


def _gain(
    reference: NetworkResult,
    found: NetworkResult,
    choices: Sequence[str],
    joint: JointPrediction | None,
    caution: float,
) -> Gain:
    predicted = found.accuracy_source == "predicted"
    if not predicted or joint is None or found.id not in joint or reference.id not in joint:
        unit = "of the score" if found.accuracy_source == "proxy" else "points"
        deviation = None
        if found.judgement and reference.judgement and found.deviation and reference.deviation:
            # As if judged on different images: on the same ones the difference scatters less.
            deviation = math.hypot(found.deviation, reference.deviation)
        return Gain(found.top1 - reference.top1, deviation, unit=unit)
    difference = joint.difference(found.id, reference.id)
    known = [each for each in dict.fromkeys(choices) if each in joint]
    lost = joint.disappointment(known, caution)
    return Gain(difference.points, difference.deviation, lost, len(known))


def recommended(report: Report, count: int) -> dict[str, Architecture]:
    """The networks that deserve to be timed end to end, by id: references, and the front thinned out.

    Of the front, ``count`` networks evenly spread over its latencies, and beside the budget and each
    reference a few that are just fast enough, as some will turn out slower than the table says.
    """
    found = [each for each in report.table_front if each.kind != "reference" and each.architecture]
    chosen: list[NetworkResult] = []
    if found:
        latencies = np.log([each.latency_ms for each in found])
        for target in np.linspace(latencies[0], latencies[-1], min(count, len(found))):
            chosen.append(found[int(np.abs(latencies - target).argmin())])
        bounds = [(each.latency_ms, each.is_ours) for each in report.references]
        bounds += [(report.budget_ms, True)] if report.budget_ms else []
        for bound, ours in bounds:
            chosen += [each for each in found if each.latency_ms <= bound][-_NEAREST if ours else -1 :]
    references = [each for each in report.references if each.architecture]
    return {each.id: each.architecture for each in (*references, *chosen) if each.architecture}


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
        EqualBudget(each, (_best_within(first.candidates, each), _best_within(second.candidates, each)))
        for each in budgets
    )


def _best_within(candidates: Iterable[NetworkResult], budget_ms: float) -> NetworkResult | None:
    within = (each for each in candidates if each.latency_ms <= budget_ms)
    return max(within, key=lambda each: each.judged_top1, default=None)


def _hypervolume_over_trials(
    networks: Sequence[NetworkResult], budget_ms: float | None, third: str | None
) -> tuple[tuple[int, float], ...]:
    """(trial, share) wherever the share of the box changes; see :func:`nas.study.pareto.dominated_share`."""
    losses = _losses(networks, third)
    found = losses[front(losses)]
    references = losses[[network.kind == "reference" for network in networks]]
    bounds = cost_bounds(found[:, 1:], references[:, 1:])
    bounds[0] = budget_ms or bounds[0]
    if third:
        numbers = np.linspace(1, len(networks), min(len(networks), _VOLUMES)).round().astype(int)
        return tuple(
            (networks[number - 1].trial, dominated_share(losses[:number][front(losses[:number])], bounds))
            for number in numbers
        )
    bound = float(bounds[0])
    # The front so far, by latency and by accuracy; each network changes it only where it enters.
    latencies: list[float] = []
    accuracies: list[float] = []
    area = 0.0
    steps: list[tuple[int, float]] = []
    for network in networks:
        latency_ms, top1 = network.latency_ms, max(0.0, network.judged_top1)
        first = bisect.bisect_right(latencies, latency_ms)
        before = accuracies[first - 1] if first else 0.0
        if latency_ms > bound or top1 <= before:
            continue
        start, height, last = latency_ms, before, first
        while last < len(latencies) and accuracies[last] <= top1:
            area += (latencies[last] - start) * (top1 - height)
            start, height = latencies[last], accuracies[last]
            last += 1
        end = latencies[last] if last < len(latencies) else bound
        area += (end - start) * (top1 - height)
        # Of equally fast networks the more accurate one stays.
        first -= first > 0 and latencies[first - 1] == latency_ms
        latencies[first:last] = [latency_ms]
        accuracies[first:last] = [top1]
        steps.append((network.trial, area / (100 * bound)))
    if steps and steps[-1][0] != networks[-1].trial:
        steps.append((networks[-1].trial, steps[-1][1]))
    return tuple(steps)


def parameter_importances(trials: Sequence[FrozenTrial]) -> tuple[Importance, ...]:
    """Importances for accuracy and for latency by functional ANOVA (Hutter et al. 2014), highest first.

    Optuna leaves out parameters that some trials lack. Here a network lacks what does not count for
    it (the third block of a stage of two), so "absent" becomes one more choice of each parameter.
    A bounded number of candidates is looked at, evenly taken from all; too few give nothing.
    """
    candidates = [trial for trial in trials if trial.user_attrs["kind"] != "reference" and trial.params]
    if len(candidates) < _FEWEST_FOR_IMPORTANCE:
        return ()
    picked = np.linspace(0, len(candidates) - 1, min(len(candidates), _TRIALS_FOR_IMPORTANCE)).astype(int)
    candidates = [candidates[index] for index in picked]
    values: dict[str, list[Any]] = {}
    for trial in candidates:
        for name, value in trial.params.items():
            values.setdefault(name, [])
            if value not in values[name]:
                values[name].append(value)
    choices = {name: [None, *found] for name, found in values.items() if len(found) > 1}
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(each) for name, each in choices.items()
    }
    if not choices:
        return ()
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shares = []
    for attribute in ("top1", "latency_ms"):
        study = optuna.create_study()
        study.add_trials(
            optuna.create_trial(
                value=trial.user_attrs[attribute],
                params={name: trial.params.get(name) for name in choices},
                distributions=distributions,
            )
            for trial in candidates
        )
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=16, max_depth=8, seed=0)
        try:
            shares.append(optuna.importance.get_param_importances(study, evaluator=evaluator))
        except (RuntimeError, ValueError):  # no variation at all to explain
            shares.append({})
    optuna.logging.set_verbosity(verbosity)
    accuracy, latency = shares
    found_importances = (
        Importance(name, float(accuracy.get(name, 0.0)), float(latency.get(name, 0.0))) for name in choices
    )
    return tuple(sorted(found_importances, key=lambda each: each.accuracy, reverse=True))
