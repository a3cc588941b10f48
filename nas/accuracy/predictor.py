"""ImageNet top-1 of a block table in microseconds, with the deviation to be expected.

    python -m nas.predictor fit accel=accel_nasbench_imagenet.csv published=published_imagenet.csv

rebuilds the shipped parameters and prints how well they predict networks left out.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nas.accuracy.estimator import Accuracy, AccuracyError
from nas.accuracy.features import BlockArrays, features
from nas.accuracy.gaussian_process import Posterior
from search_spaces.block import Architecture

SHIPPED_PARAMETERS = Path(__file__).parent / "predictor.safetensors"

# Beyond this the network is unlike everything that was fitted; the widest variant left out in the
# evaluation (a quarter of the width of MobileNetV1) is at half of it.
MAX_DEVIATION = 5.0


class Predictor:
    """Top-1 under the published MobileNet recipe (tensorflow/models, research/slim/nets), 1000 classes.

    Args:
        posterior: fitted parameters.
    """

    def __init__(self, posterior: Posterior) -> None:
        self._posterior = posterior

    @classmethod
    def load(cls, path: Path = SHIPPED_PARAMETERS) -> Predictor:
        """Read fitted parameters.

        Raises:
            ParametersError: if the file cannot be read or is of another version.
        """
        return cls(Posterior.load(path))

    def predict(self, architecture: Architecture) -> tuple[float, float]:
        """Top-1 of one training run and its standard deviation, in percentage points.

        Raises:
            AccuracyError: if the architecture is far outside the data, giving the reason.
        """
        top1, deviation = self.predict_batch(BlockArrays.from_architectures([architecture]))
        if np.isnan(top1[0]):
            raise AccuracyError(
                "the network is unlike everything the ImageNet predictor was fitted on: its standard "
                f"deviation is above {MAX_DEVIATION:g} points"
            )
        return float(top1[0]), float(deviation[0])

    def accuracy(self, architecture: Architecture) -> Accuracy:
        """The prediction as the objective wants it.

        Raises:
            AccuracyError: if the architecture is far outside the data, giving the reason.
        """
        top1, deviation = self.predict(architecture)
        return Accuracy(top1, "predicted", deviation)

    @torch.inference_mode()
    def predict_batch(self, batch: BlockArrays) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Top-1 and standard deviation of N networks, (N,) each, in percentage points.

        Both are NaN for networks that :meth:`predict` refuses. A few thousand networks at once are
        fastest: their matrices then stay in the processor's cache.
        """
        mean, spread = self._posterior.predict(torch.from_numpy(features(batch)))
        top1, deviation = mean.numpy(), spread.numpy()
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
