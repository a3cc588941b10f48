"""The objects that settings stand for: hardware, space, images, recipe, objective, source of accuracy."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from nas import data
from nas.accuracy.csv import read_extra
from nas.accuracy.features import uncovered_choices
from nas.accuracy.imagenet import SHIPPED_PARAMETERS, Predictor
from nas.accuracy.proxy import ProxyAccuracy, ProxyName
from nas.accuracy.source import Int8Penalty, SearchSource
from nas.accuracy.supernet import SupernetAccuracy
from nas.accuracy.table import AccuracyTable
from nas.accuracy.train import Recipe, TrainedAccuracy
from nas.console import console, warn
from nas.cost import BYTES_PER_VALUE, Limits
from nas.data import DatasetSettings
from nas.latency.hardware import Hardware
from nas.measuring.energy import EnergyMeter
from nas.pictures.augment import Augment
from nas.runtimes.runtime import Runtime
from nas.runtimes.subject import Precision
from nas.saving import within
from nas.settings import (
    DatasetConfig,
    HardwareConfig,
    ImagenetConfig,
    LimitsConfig,
    ObjectiveConfig,
    ProxyConfig,
    RuntimeConfig,
    SearchConfig,
    SupernetAccuracyConfig,
    TableConfig,
    TrainConfig,
    accuracy_settings,
)
from nas.shell import typed
from nas.study.objective import THIRD_COSTS, Objective, budget, mnasnet, pareto
from nas.training.pretrained import pretrained
from search_spaces.errors import InputError
from search_spaces.space import SearchSpace


@dataclass(frozen=True, slots=True)
class AccuracySource:
    """A source of accuracy with all that a search has to know of it.

    Attributes:
        space: as it suits the source.
        estimator: answers for networks.
        resolution: of references; None: that of their papers.
        predictor: what answers before anything is taken off for int8, None where it is no predictor.
        digests: of the files that answers come from, by the settings that name them.
        uses_images: whether networks are judged on the dataset.
        classes: names of what trained networks tell apart.
    """

    space: SearchSpace
    estimator: SearchSource
    resolution: int | None = None
    predictor: Predictor | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    uses_images: bool = False
    classes: tuple[str, ...] = ()

    @property
    def batch_predictor(self) -> Predictor | None:
        """The predictor, where it answers unchanged: it can screen, and tell how errors go together."""
        return self.predictor if self.predictor is self.estimator else None


def hardware_of(config: HardwareConfig) -> Hardware:
    """The hardware a config describes."""
    hosts = [config.host] if config.host else config.hosts
    return Hardware(
        name=config.name,
        measured_here=config.measured_here,
        hosts=tuple(hosts),
        python=config.python,
        estimate=config.estimate,
        temperature_limit_c=config.temperature_limit_c,
        tolerance=config.tolerance,
        affinity=tuple(config.affinity),
    )


def dataset_settings(config: DatasetConfig) -> DatasetSettings:
    """The images a config describes.

    Raises:
        DatasetError: if a setting is wrong.
    """
    return DatasetSettings(
        name=config.name,
        root=Path(config.root) if config.root else None,
        validation_share=config.validation_share,
        limit=config.limit,
        workers=config.workers,
        download=config.download,
        augment=Augment(**dataclasses.asdict(config.augment)),
        balanced=config.balanced,
        skip_unreadable=config.skip_unreadable,
    )


def recipe_of(config: TrainConfig, seed: int) -> Recipe:
    """The training recipe of ``accuracy=train``.

    Raises:
        InputError: if a setting is wrong.
    """
    names = set(Recipe.__dataclass_fields__) - {"seed"}
    return Recipe(**{name: getattr(config, name) for name in names}, seed=seed)


def runtime_of(config: RuntimeConfig) -> Runtime:
    """The runtime a config describes.

    Raises:
        InputError: if there is no such runtime, or it lacks the precision.
    """
    return Runtime(config.name, cast(Precision, config.precision), config.threads)


def limits_of(config: LimitsConfig, precision: str) -> Limits:
    """The limits on what candidates cost, besides time."""
    names = (each.name for each in dataclasses.fields(config))
    given = {name: float(value) for name in names if (value := getattr(config, name)) is not None}
    return Limits(**given, bytes_per_value=BYTES_PER_VALUE[precision])


def objective_of(config: ObjectiveConfig, caution: float, precision: str = "fp32") -> Objective:
    """The objective a config describes, with a cautious accuracy.

    Args:
        config: which, and its settings.
        caution: standard deviations taken off uncertain accuracies.
        precision: that networks run in: it decides how many bytes a value takes.

    Raises:
        InputError: if a setting is wrong.
    """
    if config.name == "pareto":
        if config.third is not None and config.third.startswith("energy"):
            raise InputError(
                f"objective.third={config.third}: energy is read of the networks that are recommended alone "
                f"(here {EnergyMeter().source}), no search can go by it; objective.third may be "
                f"{', '.join(THIRD_COSTS)} or null"
            )
        if config.third is not None and config.third not in THIRD_COSTS:
            raise InputError(f"objective.third must be {', '.join(THIRD_COSTS)} or null, not {config.third}")
        return pareto(config.third, caution, bytes_per_value=BYTES_PER_VALUE[precision])
    if config.name == "budget":
        return budget(caution)
    if config.target_ms is None or not config.target_ms > 0:
        raise InputError("objective=mnasnet needs objective.target_ms, a positive latency in ms")
    return mnasnet(config.target_ms, config.exponent, caution)


def accuracy_of(config: SearchConfig, space: SearchSpace) -> AccuracySource:
    """The source of accuracy, the space as it suits it, and the references' resolution.

    Args:
        config: of the search; ``accuracy`` decides.
        space: as it was asked for.

    Raises:
        InputError: if a setting is wrong or what the source needs is not there.
    """
    chosen = accuracy_settings(config.accuracy)
    trains = config.search.train_best > 0
    if not trains and (key := typed("train")):
        raise InputError(f"{key} is of the networks that search.train_best=N trains: say how many")
    source = SOURCES[type(chosen)](chosen, config, space)
    if not trains and not source.uses_images and (key := typed("dataset")):
        raise InputError(
            f"{key} names images, but accuracy={chosen.name} looks at none: take accuracy=train or "
            "accuracy=supernet, or let search.train_best=N train the best"
        )
    return source


def _imagenet(chosen: ImagenetConfig, config: SearchConfig, space: SearchSpace) -> AccuracySource:
    unknown = uncovered_choices(space)
    path = Path(chosen.parameters) if chosen.parameters else SHIPPED_PARAMETERS
    predictor = Predictor.load(path, chosen.recipe)
    digests = {"parameters": _digest(path.read_bytes())}
    if chosen.extra:
        networks = read_extra(Path(chosen.extra), predictor.recipe_names, chosen.recipe)
        predictor = predictor.with_networks(networks)
        # The networks themselves: the CSV may only name their files.
        digests["extra"] = _digest(repr(networks).encode())
    if unknown:
        warn(f"the ImageNet predictor cannot judge {'; '.join(unknown)}: networks with these are left out")
    penalty = dataclasses.asdict(chosen.int8_penalty)
    _check_penalty(penalty)
    if not any(penalty.values()):
        return AccuracySource(space, predictor, None, predictor, digests)
    if config.runtime.precision != "int8":
        raise InputError(
            "accuracy.int8_penalty goes with runtime.precision=int8: in fp32 nothing is quantised"
        )
    return AccuracySource(space, Int8Penalty(predictor, penalty), None, predictor, digests)


def _proxy(chosen: ProxyConfig, config: SearchConfig, space: SearchSpace) -> AccuracySource:
    return AccuracySource(space, ProxyAccuracy(cast(ProxyName, chosen.score), chosen.resolution))


def _table(chosen: TableConfig, config: SearchConfig, space: SearchSpace) -> AccuracySource:
    path = Path(chosen.path)
    known = AccuracyTable(space, path)
    lacking = space.size - len(known)
    if lacking > 0:
        warn(
            f"{chosen.path} holds {len(known):,} of the space's {space.size:,} networks: "
            "the others, and references it lacks, are left out"
        )
    return AccuracySource(space, known, digests={"path": _digest(path.read_bytes())})


def _supernet(chosen: SupernetAccuracyConfig, config: SearchConfig, space: SearchSpace) -> AccuracySource:
    space, load = _with_images(config, space)
    path = Path(chosen.checkpoint)
    source = SupernetAccuracy(path, load, chosen.batches, chosen.threads)
    source.check(space)
    digests = {"checkpoint": _digest(path.read_bytes())}
    return AccuracySource(space, source, config.dataset.resolutions[-1], digests=digests, uses_images=True)


def _train(chosen: TrainConfig, config: SearchConfig, space: SearchSpace) -> AccuracySource:
    space, load = _with_images(config, space)
    resolution = config.dataset.resolutions[-1]
    classes = load(resolution).classes  # a missing or broken dataset is said before anything is measured
    recipe = recipe_of(chosen, config.search.seed)
    if recipe.init != "scratch":
        pretrained(recipe.init)  # so are weights that cannot be had
    quantised = config.runtime.precision == "int8"
    kept = within(Path(config.study.folder) / config.study.name, "candidates")
    source = TrainedAccuracy(load, recipe, quantised, chosen.halving, kept)
    return AccuracySource(space, source, resolution, uses_images=True, classes=classes)


def _with_images(config: SearchConfig, space: SearchSpace) -> tuple[SearchSpace, data.Splits]:
    """The space as it suits the images, and what loads them."""
    images = dataset_settings(config.dataset)
    console.print(data.check(images))
    return space.restricted(config.dataset.resolutions, data.class_count(images)), data.Splits(images)


# A source of accuracy: a schema among ACCURACY_SCHEMAS, a function, a line here, a YAML in conf/accuracy.
SOURCES: dict[type, Callable[[Any, SearchConfig, SearchSpace], AccuracySource]] = {
    ImagenetConfig: _imagenet,
    ProxyConfig: _proxy,
    SupernetAccuracyConfig: _supernet,
    TableConfig: _table,
    TrainConfig: _train,
}


def _check_penalty(points: Mapping[str, float]) -> None:
    for name, lost in points.items():
        if not 0 <= lost <= 100:
            raise InputError(f"accuracy.int8_penalty.{name} must be points of top-1, 0 to 100, not {lost}")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
