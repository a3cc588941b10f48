import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from hydra import compose, initialize_config_dir

from nas.accuracy.imagenet import shipped_predictor
from nas.accuracy.proxy import ProxyAccuracy, ProxyName
from nas.accuracy.source import Accuracy, AccuracyEstimator, Int8Penalty
from nas.assembly import AccuracySource, accuracy_of
from nas.command import store_schemas
from nas.help import CONFIG_FOLDER, choices_of
from nas.searching.request import judged_references
from nas.settings import ObjectiveConfig, ProfileSettings, SearchConfig, SearchSettings, settings_of
from nas.shell import remember
from nas.study.workers import Workers
from nas.training.supernet import Supernet
from nas.training.supernet_checkpoint import Checkpoint, save
from nas.validate import ValidationSettings
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.references import reference
from search_spaces.space import SearchSpace
from tests.cases import small_space

TRAINED = [
    "accuracy=train",
    "accuracy.epochs=1",
    "accuracy.threads=1",
    "dataset=synthetic",
    "dataset.resolutions=[16]",
]


def source(*overrides: str) -> tuple[SearchSpace, AccuracyEstimator]:
    store_schemas("search", SearchConfig)
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config: Any = compose("search", [*overrides])
    settings = settings_of(config, SearchConfig)
    source = accuracy_of(settings, SearchSpace.from_dict(settings.search_space))
    space, estimator = source.space, source.estimator
    return space, estimator


@pytest.fixture
def needs(tmp_path: Path) -> dict[str, list[str]]:
    """What each source of accuracy cannot do without."""
    grid = tmp_path / "grid.csv"
    space = SearchSpace.from_yaml(CONFIG_FOLDER / "search_space" / "benchmark_stages.yaml")
    # Not trained: what a worker gets is the path alone.
    members = space.restricted([32], 10)
    digits = tuple(map(str, range(10)))
    checkpoint = tmp_path / "supernet.safetensors"
    weights = dict(Supernet(members).shared.items())
    save(checkpoint, Checkpoint(members, digits, {}, 1, 0, 1, ((1.0, 1.0, 1.0),), (), weights, {}))
    row = {name: str(choices[0]) for name, choices in space.parameters().items()}
    grid.write_text(f"{','.join(row)},accuracy\n{','.join(row.values())},60\n")
    return {
        "train": TRAINED,
        "supernet": [
            "accuracy=supernet",
            f"accuracy.checkpoint={checkpoint}",
            "search_space=benchmark_stages",
            "dataset=digits",
            "dataset.resolutions=[32]",
        ],
        "table": ["accuracy=table", "search_space=benchmark_stages", f"accuracy.path={grid}"],
    }


@pytest.mark.parametrize("name", choices_of("accuracy"))
def test_every_source_of_accuracy_can_be_copied_to_worker_processes(
    name: str, needs: dict[str, list[str]]
) -> None:
    _, estimator = source(*needs.get(name, [f"accuracy={name}"]))
    assert type(pickle.loads(pickle.dumps(estimator))) is type(estimator)


@dataclass
class WhichProcess:
    """Which process told an accuracy, in place of its deviation; waits for a second one in its folder."""

    estimator: AccuracyEstimator
    folder: Path

    def accuracy(self, architecture: Architecture) -> Accuracy:
        (self.folder / str(os.getpid())).touch()
        deadline = time.monotonic() + 60
        while len(list(self.folder.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        found = self.estimator.accuracy(architecture)
        return Accuracy(found.top1, found.source, float(os.getpid()))


@pytest.mark.slow
def test_networks_are_trained_in_two_worker_processes_as_in_this_one(tmp_path: Path) -> None:
    space, estimator = source(*TRAINED)
    encoded = space.parameters()
    small = space.build({name: choices[0] for name, choices in encoded.items()})
    other = space.build({name: choices[0] for name, choices in encoded.items()} | {"stage2.width": 24})
    found: dict[int, Accuracy] = {}
    with Workers[int](WhichProcess(estimator, tmp_path), 2) as workers:
        for number, network in enumerate((small, other)):
            workers.submit(number, network)
        while workers.in_flight:
            found |= {key: each for key, each in workers.wait() if isinstance(each, Accuracy)}
    assert len({each.deviation for each in found.values()} - {float(os.getpid())}) == 2
    for number, network in enumerate((small, other)):
        assert found[number].top1 == estimator.accuracy(network).top1


def test_references_that_the_predictor_does_not_know_are_shown_as_published_or_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("mobilenet_v2", "mobilenetv4_conv_small", "mobilenetv4_conv_medium_r192")
    references = {name: reference(name) for name in names}
    predictor, space = shipped_predictor(), small_space()
    source = AccuracySource(space, predictor, predictor=predictor)
    judged, published = judged_references(references, source)
    assert (list(judged), list(published)) == (["mobilenet_v2"], ["mobilenetv4_conv_small"])
    said = " ".join(capsys.readouterr().out.split())
    assert "mobilenetv4_conv_small is shown with its published accuracy, 73.8 %: row 1: the ImageNet" in said
    assert "mobilenetv4_conv_medium_r192 is left out: row 1:" in said
    # Penalties of int8 are for predictions: a published accuracy is of fp32.
    penalised = Int8Penalty(predictor, {"relu6": 1.0})
    source = AccuracySource(space, penalised, predictor=predictor)
    judged, published = judged_references(references, source)
    assert (list(judged), list(published)) == (["mobilenet_v2"], [])
    assert judged_references(references, AccuracySource(space, ProxyAccuracy("macs"))) == (references, {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: ObjectiveConfig("budget", third="macs"), "objective.third goes with objective=pareto"),
        (lambda: ObjectiveConfig("pareto", target_ms=9.0), "objective.target_ms goes with objective=mnasnet"),
        (lambda: ObjectiveConfig("budget", exponent=-1.0), "objective.exponent goes with objective=mnasnet"),
        (lambda: SearchSettings(percentile=90, end_to_end=0), "search.percentile goes with"),
        (lambda: SearchSettings(budget_margin=0.1), "search.budget_margin goes with search.budget_ms"),
        (lambda: SearchSettings(refine_from="mobilenet_v2"), "search.refine_from goes with"),
        (lambda: SearchSettings(refine_to_ms=9.0), "search.refine_to_ms goes with"),
        (lambda: ProfileSettings(kit="a.zip", export="b.yaml"), "profile.kit and profile.export are done"),
        (lambda: ProfileSettings(dry_run=True, import_file="a"), "profile.dry_run and profile.import are"),
        (lambda: ValidationSettings(kit="a", import_file="b"), "validate.kit and validate.import are"),
        (lambda: ValidationSettings(rounds=0), "validate.rounds must be at least 1"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(settings: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        settings()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["dataset=cifar10"], "dataset names images, but accuracy=imagenet looks at none"),
        (["dataset.root=images"], "dataset.root names images"),
        (["train.epochs=9"], "train.epochs is of the networks that search.train_best=N trains"),
        (["accuracy.int8_penalty.hswish=1"], "accuracy.int8_penalty goes with runtime.precision=int8"),
    ],
)
def test_what_is_typed_for_nothing_is_refused(typed: list[str], message: str) -> None:
    remember(["python", "-m", "nas.search", *typed])
    with pytest.raises(InputError) as caught:
        source(*typed)
    assert message in str(caught.value)


def test_scores_of_networks_that_are_run_are_expensive() -> None:
    """A sampler thinks longer over what takes seconds, whatever the source is called."""
    expensive = {name: ProxyAccuracy(name, 32).expensive for name in get_args(ProxyName)}
    assert expensive == {"naswot": True, "synflow": True, "macs": False}
