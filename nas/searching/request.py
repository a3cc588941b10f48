"""The objects that a search was asked for: what can be refused is refused before anything is measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.accuracy.features import not_covered
from nas.assembly import (
    AccuracySource,
    accuracy_of,
    dataset_settings,
    hardware_of,
    limits_of,
    objective_of,
    runtime_of,
)
from nas.console import console, measuring_progress, warn
from nas.cost import Limits
from nas.data import DatasetSettings
from nas.finish import check_trainable
from nas.foreign.catalogue import foreign_networks, is_foreign
from nas.foreign.network import ForeignNetwork
from nas.foreign.timing import check_runnable
from nas.latency.hardware import Hardware
from nas.latency.plan import TableEffort
from nas.latency.provision import reference_architectures, table_folder
from nas.latency.source import LatencySource, check_timed_from_here, keys_of
from nas.latency.table import LatencyTable
from nas.page.files import check_report
from nas.runtimes.runtime import Runtime
from nas.searching.budget import LatencyBudget
from nas.searching.provenance import fingerprint
from nas.settings import SearchConfig, SearchSettings
from nas.study.objective import Objective
from nas.study.storage import StudySetting
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.references import UnknownReferenceError, is_reference, published_top1
from search_spaces.space import NotInSpaceError, SearchSpace
from search_spaces.tasks import Task, TaskNetwork, check_space, task_of

_NETWORK_ID = re.compile("[0-9a-f]{10}")


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """A search as it was asked for, checked.

    Attributes:
        config: as it was typed.
        source: of accuracies, and where candidates come from.
        objective: what a network is worth.
        limits: what candidates may cost at most, besides time.
        task: what networks are for; None for classification.
        budget: the latency that was asked for.
        latencies: where latencies come from.
        references: networks of ours beside the candidates, by name.
        judged: those whose accuracy its source tells.
        published: those of which only the published accuracy is known.
        foreign: networks that torchvision or timm build.
        start: name of the reference that NetAdapt begins with; None for one of the front.
        images: what networks are trained on.
    """

    config: SearchConfig
    source: AccuracySource
    objective: Objective
    limits: Limits
    task: Task | None
    budget: LatencyBudget
    latencies: LatencySource
    references: Mapping[str, Architecture]
    judged: Mapping[str, Architecture]
    published: Mapping[str, Architecture]
    foreign: Sequence[ForeignNetwork]
    start: str | None
    images: DatasetSettings

    @classmethod
    def of(cls, config: SearchConfig) -> SearchRequest:
        """The objects that a configuration stands for.

        Raises:
            InputError: if something in it is wrong, or cannot be done on this hardware with this runtime.
        """
        settings, runtime, board = config.search, runtime_of(config.runtime), hardware_of(config.hardware)
        objective = objective_of(config.objective, settings.caution, runtime.precision)
        limits = limits_of(settings.limits, runtime.precision)
        task = task_of(settings.task, settings.task_classes, "search")
        foreign = foreign_networks(settings.references)
        source = accuracy_of(config, SearchSpace.from_dict(config.search_space))
        space, resolution = source.space, source.resolution
        budget = LatencyBudget.read(settings.budget_ms, settings.budget_margin, space, resolution)
        if budget.foreign is not None and budget.name not in [each.name for each in foreign]:
            foreign.append(budget.foreign)
        check_runnable(foreign, board.name, board.measured_here and not board.hosts, runtime)
        images = dataset_settings(config.dataset)
        if settings.train_best:
            check_trainable(space, images, config.train)
        ours = [name for name in settings.references if not is_foreign(name)]
        references = reference_architectures(space, ours, resolution)
        start = _add_start(settings, references, space, resolution)
        judged, published = judged_references(references, source)
        if task:
            _check_task(task, board, runtime, space, references.values(), [each.name for each in foreign])
        profiling = config.profile
        latencies = LatencySource(
            board,
            runtime,
            table_folder(Path(profiling.folder), board.name, runtime),
            TableEffort(profiling.max_keys, profiling.networks, profiling.seed),
            profiling.rounds,
            measuring_progress,
            console.print,
        )
        request = cls(
            config,
            source,
            objective,
            limits,
            task,
            budget,
            latencies,
            references,
            judged,
            published,
            foreign,
            start,
            images,
        )
        check_report(request.folder, "study.folder")
        return request

    @property
    def space(self) -> SearchSpace:
        """Where candidates come from."""
        return self.source.space

    @property
    def settings(self) -> SearchSettings:
        """The settings of the search itself."""
        return self.config.search

    @property
    def folder(self) -> Path:
        """Where results go."""
        return Path(self.config.study.folder) / self.config.study.name

    @property
    def is_shared(self) -> bool:
        """True if other machines may work on the study."""
        return self.config.study.storage is not None

    @property
    def extra(self) -> list[Architecture]:
        """Networks that need latencies beside the members of the space."""
        asked = [self.budget.architecture] if self.budget.architecture else []
        return [*self.references.values(), *asked]

    def setting(self, table: LatencyTable, networks: str | None = None) -> StudySetting:
        """The setting that its study is held to.

        Args:
            table: where its latencies come from.
            networks: those measured for the table, as text.
        """
        config, space = self.config, self.space
        wanted = fingerprint(config, table, self.source, self.references, self.budget)
        used = table.restricted(keys_of(space, self.extra))
        return StudySetting(self.objective, space, wanted, used, networks)


def judged_references(
    references: Mapping[str, Architecture], source: AccuracySource
) -> tuple[dict[str, Architecture], dict[str, Architecture]]:
    """References that can be judged, and those of which only the published accuracy is known.

    Those that have neither are left out, said in a line.
    """
    if source.predictor is None:
        return dict(references), {}
    judged: dict[str, Architecture] = {}
    published: dict[str, Architecture] = {}
    for name, architecture in references.items():
        reason = not_covered(architecture)
        top1 = published_top1(name, architecture.resolution) if is_reference(name) else None
        if reason is None:
            judged[name] = architecture
        elif top1 is None or source.batch_predictor is None:  # a published accuracy is one of fp32
            warn(f"{name} is left out: {reason}")
        else:
            warn(f"{name} is shown with its published accuracy, {top1:g} %: {reason}")
            published[name] = architecture
    return judged, published


def _add_start(
    settings: SearchSettings,
    references: dict[str, Architecture],
    space: SearchSpace,
    resolution: int | None,
) -> str | None:
    """Make the network that NetAdapt is to begin with a reference; its name, or the id that was given.

    Raises:
        InputError: if it is none that can be shrunk.
    """
    name = settings.refine_from
    if not settings.refine or not name or _NETWORK_ID.fullmatch(name):
        return name
    try:
        ((found, network),) = reference_architectures(space, [name], resolution).items()
    except UnknownReferenceError as error:
        raise InputError(
            f"search.refine_from={name} is neither the id of a network on the front, nor a block table's "
            f"file, nor a reference: {error}"
        ) from None
    try:
        space.encode(network)
    except NotInSpaceError as error:
        raise InputError(
            f"search.refine_from={name} is not in the space {space.name!r}, within which NetAdapt goes step "
            f"by step: {error}"
        ) from None
    references.setdefault(found, network)
    return found


def _check_task(
    task: Task,
    board: Hardware,
    runtime: Runtime,
    space: SearchSpace,
    references: Iterable[Architecture],
    foreign: Sequence[str],
) -> None:
    """Refuse a search for a task that its head, its runtime or its references do not suit.

    Raises:
        InputError: before anything is measured.
    """
    check_timed_from_here(task, board)
    runtime.check_task(task)
    check_space(task, space)
    for each in references:
        TaskNetwork(each, task)
    if foreign:
        raise InputError(
            f"{foreign[0]} is timed as a classifier, which says nothing beside networks for {task.name}: "
            "leave it out of search.references"
        )
    warn(f"  mind: accuracies are of classification, a proxy for {task.name}; latencies are of whole models")
