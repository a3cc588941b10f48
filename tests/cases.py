"""What tests share: small spaces, made-up accuracies, latencies and devices, and how a command ended."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import optuna
from optuna.trial import FrozenTrial
from PIL import Image

import nas
from nas.accuracy.source import Accuracy, AccuracyError
from nas.cost import cost, layer_cost
from nas.devices.device import Measurement, measurement, subject_name
from nas.latency.table import Latency
from nas.measuring.progress import ProfileProgress
from nas.measuring.rounds import Journal, Round
from nas.runtimes.subject import Subject
from nas.study.trial import Trial
from search_spaces.architecture import Architecture
from search_spaces.gate import Gate
from search_spaces.layers import LayerKey, layer_keys
from search_spaces.space import SearchSpace
from search_spaces.tasks import TaskNetwork

# -- spaces ------------------------------------------------------------------------------------------

# 5 choices in each of 4 layers and two resolutions, 1,250 settings. "skip" in a layer that keeps its
# shape is the identity, so some settings are the same network.
SMALL: dict[str, Any] = {
    "name": "small",
    "resolutions": [32, 64],
    "stems": [{"channels": 16}],
    "stages": [
        {
            "stride": 2,
            "width": width,
            "layers": 2,
            "candidates": [
                {"kind": "skip"},
                {"kernel": 3, "expansion": 3},
                {"kernel": 3, "expansion": 6},
                {"kernel": 5, "expansion": 6},
                {"kernel": 5, "expansion": 6, "se": True},
            ],
        }
        for width in (24, 48)
    ],
    "heads": [{"conv_channels": 128}],
    "classes": 10,
}


def small_space() -> SearchSpace:
    return SearchSpace.from_dict(SMALL)


def space_of_one() -> SearchSpace:
    """A space without any choice: one network, to be set beside the references."""
    stages = [{"stride": 2, "depths": [1], "widths": [24], "expansions": [3]}]
    plain = {"name": "one", "resolutions": [32], "stems": [{"channels": 16}], "stages": stages}
    return SearchSpace.from_dict({**plain, "heads": [{"conv_channels": 128}], "classes": 10})


# Small enough to be measured and trained for real within seconds.
TINY_SPACE: dict[str, Any] = {
    "name": "tiny",
    "resolutions": [16],
    "stems": [{"channels": 8}],
    "stages": [
        {"stride": 2, "depths": [1, 2], "widths": [8, 16], "expansions": [2, 3], "se": [False, True]},
        {"stride": 2, "depths": [0, 1], "widths": [24], "kernels": [3, 5], "activations": ["hswish"]},
    ],
    "heads": [{"conv_channels": 64}],
}
# Settings of a search that does so.
QUICK = [
    "accuracy=train",
    "dataset=synthetic",
    "dataset.resolutions=[16]",
    "accuracy.epochs=1",
    "accuracy.threads=1",
    "search.references=[mobilenet_v1_025,mobilenet_v3_small_050]",
    "search.trials=5",
    "search.seed=3",
    "profile.max_keys=40",
    "profile.networks=4",
    "profile.rounds=4",
]


# -- accuracies, latencies, devices -------------------------------------------------------------------


class MadeUpLatency:
    """Milliseconds that grow with multiply-accumulates and with the number of blocks."""

    def latency(self, architecture: Architecture) -> Latency:
        blocks = sum(not block.is_identity for block in architecture.blocks)
        return Latency(cost(architecture).macs / 1e6 + 0.1 * blocks, "estimated")


class MadeUpAccuracy:
    """Percent that grow with multiply-accumulates, more with SE; counts how often each network was asked."""

    def __init__(self, refused: frozenset[str] = frozenset()) -> None:
        self.asked: Counter[Architecture] = Counter()
        self.refused = refused

    def accuracy(self, architecture: Architecture) -> Accuracy:
        self.asked[architecture] += 1
        if architecture.id in self.refused or "all" in self.refused:
            raise AccuracyError("no accuracy for this network")
        se = sum(block.se for block in architecture.blocks)
        return Accuracy(100 - 400 / math.log(cost(architecture).macs) + se, "predicted", 0.5)


def layer_ms(key: LayerKey) -> float:
    """A smooth law: work, memory and an overhead."""
    activations = key.in_channels * key.size**2
    return 0.02 + layer_cost(key).macs * 3e-8 + activations * 4e-8 + layer_cost(key).parameters * 1e-8


def network_ms(subject: Subject) -> float:
    """Networks save part of what lone layers pay: an overhead each, and part of their input."""
    if isinstance(subject, LayerKey):
        return layer_ms(subject)
    network = subject.architecture if isinstance(subject, TaskNetwork) else subject
    return sum(
        0.9 * layer_ms(key) - 0.004 - 1e-8 * key.in_channels * key.size**2 for key in layer_keys(network)
    )


@dataclass
class FakeTarget:
    """Measures by the law above, with some noise, and remembers what it was asked for.

    ``cold_caches`` slows down lone layers and leaves networks as they are.
    """

    noise: float = 0.0
    speed: float = 1.0
    cold_caches: float = 1.0
    device: str = "fake cpu"
    runtime_version: str = onnxruntime.__version__
    session_subjects: int = 2000
    asked: int = 0

    def identity(self) -> tuple[str, str]:
        return self.device, self.runtime_version

    def measure(
        self,
        subjects: Sequence[Subject],
        rounds: int,
        journal: Path,
        progress: ProfileProgress = ProfileProgress(),
        precise: Sequence[Subject] = (),
    ) -> Measurement:
        self.asked += len(subjects)
        identity = {"device": self.device, "version": self.runtime_version}
        kept = Journal(journal, [subject_name(each) for each in subjects], identity)
        generator = np.random.default_rng(len(subjects))
        exact = np.array([network_ms(each) for each in subjects]) / self.speed
        exact[[isinstance(each, LayerKey) for each in subjects]] *= self.cold_caches
        while len(kept.rounds) < rounds:
            noisy = exact * np.exp(self.noise * generator.standard_normal(len(exact)))
            kept.append(Round([float(each) for each in noisy], [5.0 / self.speed] * 3, {"load": 0.1}))
            progress.measured(len(kept.rounds), rounds)
        return measurement(subjects, kept.rounds, kept.rounds, {"cpu": self.device})


def architecture_of(study: optuna.Study, trial: FrozenTrial) -> Architecture:
    """The network of a trial, rebuilt from the study alone."""
    record = Trial.of(trial, Gate("the study"))
    if record is not None and record.network is not None:
        return record.network
    return SearchSpace.from_dict(study.user_attrs["space"]).build(trial.params)


# -- files ------------------------------------------------------------------------------------------


def assert_drawn(png: Path) -> None:
    """A PNG is a picture of some size in which something is drawn, neither blank nor cut off."""
    with Image.open(png) as picture:
        assert min(picture.size) >= 400, picture.size
        pixels = np.asarray(picture.convert("L"))
    dark = pixels < 128
    # Ink in each quarter, and more background than ink.
    middle = [side // 2 for side in pixels.shape]
    for part in (dark[: middle[0]], dark[middle[0] :], dark[:, : middle[1]], dark[:, middle[1] :]):
        assert 0.0005 < part.mean() < 0.5, part.mean()


# -- commands ----------------------------------------------------------------------------------------

# Every command and the dataclass of its settings.
COMMANDS = {
    "search": "SearchConfig",
    "profile": "ProfileConfig",
    "validate": "ValidateConfig",
    "export": "ExportConfig",
    "report": "ReportConfig",
    "predictor": "FitConfig",
    "compare": "CompareConfig",
    "supernet": "SupernetConfig",
    "train": "FinalTrainConfig",
    "preset_adaptation": "AdaptationConfig",
    "fit_preset": "FitConfig",
    "latency_benchmark": "BenchmarkConfig",
    "scoring_benchmark": "ScoringConfig",
}


def command_of(name: str) -> tuple[ModuleType, type]:
    """The module of a command and the dataclass of its settings."""
    folder = "nas" if (Path(nas.__file__).parent / f"{name}.py").is_file() else "tools"
    module = importlib.import_module(f"{folder}.{name}")
    return module, getattr(module, COMMANDS[name])


@dataclass
class Outcome:
    """How a command ended: its exit code, what it said, and what it said on the error output."""

    code: int
    out: str
    err: str


# Runs ``python -m nas.NAME ARGUMENTS``: the fixture ``run``.
Run = Callable[..., Outcome]


def refused(outcome: Outcome, *parts: str) -> None:
    """One clear line on the error output, an exit code, no traceback."""
    assert outcome.code == 2, outcome
    (line,) = [each for each in outcome.err.splitlines() if each.strip()]
    assert line.startswith("error: ")
    assert "Traceback" not in outcome.out + outcome.err
    for part in parts:
        assert part in line, line
