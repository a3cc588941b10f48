"""The latency that a task's head adds to a network, learnt from whole models timed end to end.

A head takes two maps of the network, so its latency depends on their channels and sizes. It is linear in
a few quantities of its operators,

    whole_ms = sum(layers of the backbone, calibrated) + c . (1, pixels, MACs, weights, values)

with coefficients that are not negative, fitted on relative errors of whole models that ran in the same
rounds as networks of the table. All quantities are sums over layers: what depends on the finer map belongs
to the layer that takes it, what depends on the map of stride 32 to the classifier whose place the head
takes, the rest to the stem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nas.latency.calibration import ErrorSummary
from search_spaces.architecture import Architecture
from search_spaces.blocks import Head, Stem
from search_spaces.gate import Gate
from search_spaces.layers import LayerKey, operators
from search_spaces.ops import Operators, Pool, convolutions
from search_spaces.tasks import Task, strided_keys

HEAD_FEATURES = ("models", "megapixels", "mega_macs", "mega_weights", "mega_values")
FEWEST_MODELS = 10
_LARGEST = 1e12


@lru_cache(maxsize=200_000)
def head_features(task: Task, key: LayerKey, stride: int) -> tuple[float, ...]:
    """Quantities of the head that one layer decides, as :data:`HEAD_FEATURES`.

    Args:
        task: whose head it is.
        key: a layer of the network.
        stride: of the map that the layer takes, 1 for the image.
    """
    if isinstance(key.part, Stem):
        return (1.0, key.size**2 / 1e6, *_work(task.fixed_part(key.size)))
    if isinstance(key.part, Head):
        made_of = operators(key)
        pooled = next(number for number, each in enumerate(made_of) if isinstance(each, Pool))
        return (0.0, 0.0, *_work([made_of[:pooled], *task.coarse_part(task.coarse_tap(key))]))
    if stride == task.tapped_stride and any(each.stride == 2 for each in convolutions(operators(key))):
        return (0.0, 0.0, *_work(task.fine_part(task.fine_tap(key))))
    return (0.0,) * len(HEAD_FEATURES)


def _work(parts: Sequence[Operators]) -> tuple[float, float, float]:
    convs = [conv for made_of in parts for conv in convolutions(made_of)]
    totals = (sum(getattr(each, name) for each in convs) for name in ("macs", "weights", "out_values"))
    macs, weights, values = (total / 1e6 for total in totals)
    return macs, weights, values


@dataclass(frozen=True, slots=True)
class HeadCost:
    """A fitted head.

    Attributes:
        task: whose head it is.
        coefficients: milliseconds per unit of each of :data:`HEAD_FEATURES`.
        left_out: error on the whole models it was fitted on, each predicted from the others.
    """

    task: Task
    coefficients: tuple[float, ...]
    left_out: ErrorSummary

    @classmethod
    def fit(
        cls,
        task: Task,
        models: Sequence[Architecture],
        backbones_ms: NDArray[np.float64],
        measured_ms: NDArray[np.float64],
    ) -> HeadCost:
        """Fit on whole models.

        Args:
            task: what they do.
            models: their networks.
            backbones_ms: (models,) what the table says of them without their classifiers.
            measured_ms: (models,) end-to-end latency of the whole.

        Raises:
            ValueError: with fewer than :data:`FEWEST_MODELS`.
        """
        if len(models) < FEWEST_MODELS:
            raise ValueError(f"a head needs at least {FEWEST_MODELS} whole models, not {len(models)}")
        features = np.array(
            [
                np.sum([head_features(task, key, stride) for key, stride in strided_keys(each)], axis=0)
                for each in models
            ]
        )
        coefficients = _fitted(features, backbones_ms, measured_ms)
        predicted = np.empty(len(models))
        for number in range(len(models)):
            others = np.arange(len(models)) != number
            left = _fitted(features[others], backbones_ms[others], measured_ms[others])
            predicted[number] = backbones_ms[number] + features[number] @ left
        left_out = ErrorSummary.of(predicted, measured_ms)
        return cls(task, tuple(float(each) for each in coefficients), left_out)

    def layer_ms(self, key: LayerKey, stride: int, alone_ms: float) -> float:
        """A layer's share of the whole model, from its share of the network; the classifier has none.

        Args:
            key: the layer.
            stride: of the map that it takes, 1 for the image.
            alone_ms: its share of the latency of the network.
        """
        features = head_features(self.task, key, stride)
        added = sum(a * b for a, b in zip(self.coefficients, features, strict=True))
        return added + (0.0 if isinstance(key.part, Head) else alone_ms)

    def to_dict(self) -> dict[str, object]:
        """Plain types; the inverse of :meth:`from_dict`."""
        return {
            "task": asdict(self.task),
            "features": dict(zip(HEAD_FEATURES, self.coefficients, strict=True)),
            "left_out": asdict(self.left_out),
        }

    @classmethod
    def from_dict(cls, data: object, gate: Gate) -> HeadCost:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InputError: of the gate's kind, if a field is missing or no finite number.
            search_spaces.tasks.TaskError: if there is no such task.
        """
        data = gate.fields("head", data, ("task", "features", "left_out"))
        task = gate.fields("task", data["task"], ("name", "classes"))
        features = gate.fields("features", data["features"], HEAD_FEATURES)
        return cls(
            Task(gate.string("task", task["name"]), gate.integer("classes", task["classes"])),
            tuple(gate.number(name, features[name], 0, _LARGEST) for name in HEAD_FEATURES),
            gate.record("left_out", ErrorSummary, data["left_out"]),
        )


def _fitted(
    features: NDArray[np.float64], backbones_ms: NDArray[np.float64], measured_ms: NDArray[np.float64]
) -> NDArray[np.float64]:
    from scipy.optimize import nnls

    # Dividing by the measurement makes residuals relative: a small model counts like a large one.
    design = features / measured_ms[:, None]
    scale = np.sqrt((design**2).mean(axis=0))
    scale[scale == 0] = 1
    solution, _ = nnls(design / scale, 1 - backbones_ms / measured_ms)
    found: NDArray[np.float64] = solution / scale
    return found
