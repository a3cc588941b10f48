"""A device whose latencies are known: for tests of everything around a measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from nas.cost import layer_cost
from nas.devices.device import Measurement, measurement, subject_name
from nas.measuring.rounds import Journal, Round
from nas.runtimes.subject import Subject
from search_spaces.layers import LayerKey, layer_keys


def layer_ms(key: LayerKey) -> float:
    """A smooth law: work, memory and an overhead."""
    activations = key.in_channels * key.size**2
    return 0.02 + layer_cost(key).macs * 3e-8 + activations * 4e-8 + layer_cost(key).parameters * 1e-8


def network_ms(subject: Subject) -> float:
    """Networks save part of what lone layers pay: an overhead each, and part of their input."""
    if isinstance(subject, LayerKey):
        return layer_ms(subject)
    return sum(
        0.9 * layer_ms(key) - 0.004 - 1e-8 * key.in_channels * key.size**2 for key in layer_keys(subject)
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

    @property
    def identity(self) -> dict[str, str]:
        """What a local measurement keeps beside its rounds."""
        return {"device": self.device, "version": self.runtime_version}

    def measure(
        self,
        subjects: Sequence[Subject],
        rounds: int,
        journal: Path,
        on_prepared: Callable[[int, int], None] = lambda done, total: None,
        on_round: Callable[[int, int], None] = lambda done, wanted: None,
    ) -> Measurement:
        self.asked += len(subjects)
        kept = Journal(journal, [subject_name(each) for each in subjects], self.identity)
        generator = np.random.default_rng(len(subjects))
        exact = np.array([network_ms(each) for each in subjects]) / self.speed
        exact[[isinstance(each, LayerKey) for each in subjects]] *= self.cold_caches
        while len(kept.rounds) < rounds:
            noisy = exact * np.exp(self.noise * generator.standard_normal(len(exact)))
            kept.append(Round([float(each) for each in noisy], [5.0 / self.speed] * 3, {"load": 0.1}))
            on_round(len(kept.rounds), rounds)
        return measurement(subjects, kept.rounds, kept.rounds, {"cpu": self.device})
