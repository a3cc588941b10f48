"""ImageNet top-1 of a block table in microseconds, with the deviation to be expected.

    python -m nas.predictor fit accel=accel_nasbench_imagenet.csv published=published_imagenet.csv

rebuilds the shipped parameters and prints how well they predict networks left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nas.accuracy.csv import TrainedNetwork
from nas.accuracy.features import RunArrays, features, features_of, not_covered
from nas.accuracy.process import Evaluator, Posterior
from nas.accuracy.source import Accuracy, AccuracyError, Answer
from search_spaces.architecture import Architecture

SHIPPED_PARAMETERS = Path(__file__).parent / "predictor.safetensors"

# Beyond this the network is unlike everything that was fitted; the widest variant left out in the
# evaluation (a quarter of the width of MobileNetV1) is at half of it.
MAX_DEVIATION = 5.0
_TOO_UNCERTAIN = (
    "the network is unlike everything the ImageNet predictor was fitted on: its standard deviation is above "
    f"{MAX_DEVIATION:g} points"
)

Floats = NDArray[np.float64]


class Predictor:
    """Top-1 under the published MobileNet recipe (tensorflow/models, research/slim/nets), 1000 classes.

    Args:
        posterior: fitted parameters.
    """

    def __init__(self, posterior: Posterior) -> None:
        self._posterior = posterior
        self._evaluator = Evaluator(posterior)

    @classmethod
    def load(cls, path: Path = SHIPPED_PARAMETERS) -> Predictor:
        """Read fitted parameters.

        Raises:
            ParametersError: if the file cannot be read or is of another version.
        """
        return cls(Posterior.load(path))

    def save(self, path: Path, notes: Mapping[str, str]) -> None:
        """Write the parameters with notes on where they come from."""
        self._posterior.save(path, notes)

    def with_networks(self, networks: Sequence[TrainedNetwork]) -> Predictor:
        """A predictor that has seen these networks too.

        Raises:
            AccuracyError: if one is far outside the data, giving the reason.
        """
        inputs = features_of([each.architecture for each in networks])
        log_error = np.log([100 - each.top1 for each in networks])
        return Predictor(
            self._posterior.conditioned(
                torch.from_numpy(inputs), torch.from_numpy(log_error), [each.recipe for each in networks]
            )
        )

    def predict(self, architecture: Architecture) -> tuple[float, float]:
        """Top-1 of one training run and its standard deviation, in percentage points.

        Raises:
            AccuracyError: if the architecture is far outside the data, giving the reason.
        """
        found = self.accuracy(architecture)
        assert found.deviation is not None
        return found.top1, found.deviation

    def accuracy(self, architecture: Architecture) -> Accuracy:
        """The prediction as the objective wants it.

        Raises:
            AccuracyError: if the architecture is far outside the data, giving the reason.
        """
        (answer,) = self.accuracies([architecture])
        if isinstance(answer, AccuracyError):
            raise answer
        return answer

    def predict_many(self, architectures: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Top-1 and standard deviation of N networks, (N,) each, in percentage points.

        Both are NaN for networks that :meth:`predict` refuses.
        """
        top1, deviation = np.full((2, len(architectures)), np.nan)
        covered = [number for number, each in enumerate(architectures) if not_covered(each) is None]
        top1[covered], deviation[covered] = self.predict_batch(
            RunArrays.from_architectures([architectures[number] for number in covered])
        )
        return top1, deviation

    def accuracies(self, architectures: Sequence[Architecture]) -> list[Answer]:
        """See :class:`nas.accuracy.source.BatchEstimator`."""
        top1, deviation = self.predict_many(architectures)
        return [
            AccuracyError(not_covered(architecture) or _TOO_UNCERTAIN)
            if math.isnan(mean)
            else Accuracy(mean, "predicted", spread)
            for architecture, mean, spread in zip(
                architectures, top1.tolist(), deviation.tolist(), strict=True
            )
        ]

    def predict_batch(self, batch: RunArrays) -> tuple[Floats, Floats]:
        """:meth:`predict_many` of networks that are arrays already.

        Two thousand networks at once are fastest: their matrices then stay in the processor's cache.
        """
        top1, deviation = self._evaluator(features(batch))
        refused = ~(batch.covered() & (deviation <= MAX_DEVIATION))
        top1[refused] = deviation[refused] = np.nan
        return top1, deviation


@lru_cache(maxsize=1)
def shipped_predictor() -> Predictor:
    """The predictor with the parameters that come with the package.

    Raises:
        ParametersError: if they are missing or of another version.
    """
    return Predictor.load()
