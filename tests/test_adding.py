"""A sampler, a source of accuracy, a runtime, a dataset: each is added by a line in its mapping."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from optuna.samplers import BaseSampler, QMCSampler

from nas import assembly, data
from nas.accuracy.source import Accuracy
from nas.command import store_schemas
from nas.cost import cost
from nas.help import CONFIG_FOLDER
from nas.runtimes import onnxruntime
from nas.runtimes.runtime import ENGINES, Runtime
from nas.settings import ACCURACY_SCHEMAS, SearchConfig, settings_of
from nas.study.loop import Sampling, Stop, run_search
from nas.study.objective import pareto
from nas.study.problem import Problem
from nas.study.samplers import SAMPLERS
from nas.study.storage import StudySetting, open_storage, open_study
from search_spaces.architecture import Architecture
from search_spaces.references import reference
from search_spaces.space import SearchSpace
from tests.cases import MadeUpLatency, small_space


@dataclass
class MacsConfig:
    """What the new source of accuracy can be told."""

    name: str = "mine"
    label: str = "mine"
    trials: int = 5
    minutes: float | None = None
    scale: float = 1.0


class Macs:
    """The new source of accuracy."""

    expensive = False

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def accuracy(self, architecture: Architecture) -> Accuracy:
        return Accuracy(min(100.0, self.scale * cost(architecture).macs / 1e6), "proxy")


def composed(*overrides: str) -> SearchConfig:
    store_schemas("search", SearchConfig)
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return settings_of(compose("search", [*overrides]), SearchConfig)


def add_yaml(group: str, **settings: object) -> None:
    """What a file ``conf/GROUP/mine.yaml`` is to Hydra."""
    ConfigStore.instance().store(group=group, name="mine", node={"name": "mine", **settings})


def made(chosen: MacsConfig, config: SearchConfig, space: SearchSpace) -> assembly.AccuracySource:
    return assembly.AccuracySource(space, Macs(chosen.scale))


def quasi_random(seed: int) -> BaseSampler:
    return QMCSampler(seed=seed)


def test_a_source_of_accuracy_and_a_sampler_make_a_search(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(ACCURACY_SCHEMAS, "mine", MacsConfig)
    monkeypatch.setitem(assembly.SOURCES, MacsConfig, made)
    monkeypatch.setitem(SAMPLERS, "mine", quasi_random)
    store_schemas("search", SearchConfig)
    ConfigStore.instance().store(group="accuracy", name="mine", node=MacsConfig)
    add_yaml("sampler")
    config = composed("accuracy=mine", "accuracy.scale=0.5", "sampler=mine")
    source = assembly.accuracy_of(config, small_space())
    study = open_study(
        open_storage(str(tmp_path / "study.journal")), "s", StudySetting(pareto(), source.space)
    )
    references = {"mobilenet_v1": reference("mobilenet_v1", 32, 10)}
    problem = Problem(source.space, pareto(), source.estimator, MadeUpLatency(), references)
    result = run_search(study, problem, Sampling(config.sampler.name), Stop(config.search.trials))
    assert result.evaluated == 5
    for trial in study.trials:
        assert trial.user_attrs["top1"] == pytest.approx(trial.user_attrs["macs"] / 2e6)


def test_a_runtime_times_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "mine", replace(onnxruntime.ENGINE, name="mine", precisions=("fp32",)))
    add_yaml("runtime", precision="fp32", threads=1)
    runtime = assembly.runtime_of(composed("runtime=mine").runtime)
    assert runtime.name == "mine"
    assert runtime.version() == Runtime("onnxruntime").version()
    runtime.runner(reference("mobilenet_v3_small_050", 32, 10))()


def test_a_dataset_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic = data.DATASETS["synthetic"]
    monkeypatch.setitem(data.DATASETS, "mine", synthetic)
    add_yaml("dataset", resolutions=[16], limit=40)
    images = assembly.dataset_settings(composed("dataset=mine").dataset)
    expected = data.load(replace(images, name="synthetic"), 16)
    assert data.class_count(images) == len(expected.classes)
    assert data.load(images, 16).classes == expected.classes
