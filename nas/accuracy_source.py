"""The source of accuracy that a configuration asks for, ready to be asked."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from nas import data
from nas.accuracy.csv import read_extra
from nas.accuracy.imagenet import Predictor, shipped_predictor
from nas.accuracy.proxy import ProxyAccuracy
from nas.accuracy.source import AccuracyEstimator, PublishedFirst
from nas.accuracy.table import AccuracyTable
from nas.accuracy.train import TrainedAccuracy
from nas.latency.provision import reference_architectures
from nas.settings import (
    DatasetConfig,
    ImagenetConfig,
    SearchSettings,
    TrainConfig,
    dataset_settings,
    plain,
    recipe_of,
)
from search_spaces.references import published_top1
from search_spaces.space import SearchSpace


def accuracy_of(
    config: Any, space: SearchSpace, settings: SearchSettings
) -> tuple[SearchSpace, AccuracyEstimator, int | None]:
    """The source of accuracy, the space as it suits it, and the references' resolution."""
    if config.accuracy.name == "imagenet":
        predictor = _predictor(plain(config.accuracy, ImagenetConfig))
        references = reference_architectures(space, settings.references)
        published = {
            architecture: top1
            for name, architecture in references.items()
            if (top1 := published_top1(name, architecture.resolution)) is not None
        }
        return space, PublishedFirst(published, predictor), None
    if config.accuracy.name == "proxy":
        return space, ProxyAccuracy(config.accuracy.score, config.accuracy.resolution), None
    if config.accuracy.name == "table":
        return space, AccuracyTable(space, Path(config.accuracy.path)), None
    dataset = plain(config.dataset, DatasetConfig)
    images = dataset_settings(dataset)
    space = space.restricted(dataset.resolutions, data.class_count(images))
    load = functools.cache(functools.partial(data.load, images))
    load(dataset.resolutions[-1])  # a missing or broken dataset is said before anything is measured
    recipe = recipe_of(plain(config.accuracy, TrainConfig), settings.seed)
    return space, TrainedAccuracy(load, recipe), dataset.resolutions[-1]


def _predictor(config: ImagenetConfig) -> Predictor:
    predictor = Predictor.load(Path(config.parameters)) if config.parameters else shipped_predictor()
    return predictor.with_networks(read_extra(Path(config.extra))) if config.extra else predictor
