"""The objects that settings stand for: hardware, space, images, recipe, objective, source of accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nas import data
from nas.accuracy.csv import read_extra
from nas.accuracy.features import uncovered_choices
from nas.accuracy.imagenet import SHIPPED_PARAMETERS, Predictor
from nas.accuracy.proxy import ProxyAccuracy
from nas.accuracy.source import Int8Penalty, SearchSource
from nas.accuracy.supernet import SupernetAccuracy
from nas.accuracy.table import AccuracyTable
from nas.accuracy.train import Recipe, TrainedAccuracy
from nas.console import console, warn
from nas.cost import BYTES_PER_VALUE, Limits
from nas.data import DatasetSettings
from nas.latency.hardware import Hardware
from nas.pictures.augment import Augment
from nas.settings import (
    DatasetConfig,
    HardwareConfig,
    ImagenetConfig,
    LimitsConfig,
    ObjectiveConfig,
    SearchSettings,
    SupernetAccuracyConfig,
    TrainConfig,
    plain,
)
from nas.study.objective import THIRD_COSTS, Budget, MnasNet, Objective, Pareto
from nas.training.pretrained import pretrained
from search_spaces.errors import InputError
from search_spaces.space import SearchSpace


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
        name=config.name,  # type: ignore[arg-type]  # DatasetSettings checks it
        root=Path(config.root) if config.root else None,
        validation_share=config.validation_share,
        limit=config.limit,
        workers=config.workers,
        download=config.download,
        augment=Augment(**dataclasses.asdict(config.augment)),
        balanced=config.balanced,
    )


def recipe_of(config: TrainConfig, seed: int) -> Recipe:
    """The training recipe of ``accuracy=train``.

    Raises:
        InputError: if a setting is wrong.
    """
    names = set(Recipe.__dataclass_fields__) - {"seed"}
    return Recipe(**{name: getattr(config, name) for name in names}, seed=seed)


def read_space(config: Any) -> SearchSpace:
    """The search space of a composed config."""
    return SearchSpace.from_dict(OmegaConf.to_container(config, resolve=True))


def limits_of(config: LimitsConfig, precision: str) -> Limits:
    """What candidates may cost at most, besides time."""
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
        if config.third is not None and config.third not in THIRD_COSTS:
            raise InputError(f"objective.third must be {', '.join(THIRD_COSTS)} or null, not {config.third}")
        return Pareto(config.third, caution, bytes_per_value=BYTES_PER_VALUE[precision])
    if config.name == "budget":
        return Budget(caution)
    if config.target_ms is None or not config.target_ms > 0:
        raise InputError("objective=mnasnet needs objective.target_ms, a positive latency in ms")
    return MnasNet(config.target_ms, config.exponent, caution)


def accuracy_of(
    config: Any, space: SearchSpace, settings: SearchSettings
) -> tuple[SearchSpace, SearchSource, int | None]:
    """The source of accuracy, the space as it suits it, and the references' resolution."""
    if config.accuracy.name == "imagenet":
        predictor = _predictor(plain(config.accuracy, ImagenetConfig))
        if unknown := uncovered_choices(space):
            warn(
                f"the ImageNet predictor cannot judge {'; '.join(unknown)}: networks with these are left out"
            )
        penalty = dict(config.accuracy.int8_penalty)
        _check_penalty(penalty)
        if any(penalty.values()) and config.runtime.precision == "int8":
            return space, Int8Penalty(predictor, penalty), None
        return space, predictor, None
    if config.accuracy.name == "proxy":
        return space, ProxyAccuracy(config.accuracy.score, config.accuracy.resolution), None
    if config.accuracy.name == "table":
        known = AccuracyTable(space, Path(config.accuracy.path))
        lacking = space.size - len(known)
        if lacking > 0:
            warn(
                f"{config.accuracy.path} holds {len(known):,} of the space's {space.size:,} networks: "
                "the others, and references it lacks, are left out"
            )
        return space, known, None
    dataset = plain(config.dataset, DatasetConfig)
    images = dataset_settings(dataset)
    console.print(data.check(images), markup=False)
    space = space.restricted(dataset.resolutions, data.class_count(images))
    load = data.Splits(images)
    if config.accuracy.name == "supernet":
        wanted = plain(config.accuracy, SupernetAccuracyConfig)
        source = SupernetAccuracy(Path(wanted.checkpoint), load, wanted.batches, wanted.threads)
        source.check(space)
        return space, source, dataset.resolutions[-1]
    load(dataset.resolutions[-1])  # a missing or broken dataset is said before anything is measured
    training = plain(config.accuracy, TrainConfig)
    recipe = recipe_of(training, settings.seed)
    if recipe.init != "scratch":
        pretrained(recipe.init)  # so are weights that cannot be had
    quantised = config.runtime.precision == "int8"
    kept = Path(config.study.folder) / config.study.name / "candidates"
    accuracy = TrainedAccuracy(load, recipe, quantised, training.halving, kept)
    return space, accuracy, dataset.resolutions[-1]


def _check_penalty(points: Mapping[str, float]) -> None:
    for name, lost in points.items():
        if not 0 <= lost <= 100:
            raise InputError(f"accuracy.int8_penalty.{name} must be points of top-1, 0 to 100, not {lost}")


def _predictor(config: ImagenetConfig) -> Predictor:
    path = Path(config.parameters) if config.parameters else SHIPPED_PARAMETERS
    predictor = Predictor.load(path, config.recipe)
    if not config.extra:
        return predictor
    return predictor.with_networks(read_extra(Path(config.extra), predictor.recipe_names, config.recipe))
