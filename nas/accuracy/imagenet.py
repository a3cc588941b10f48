"""ImageNet top-1 of a block table in microseconds, with the deviation to be expected.

    python -m nas.predictor fit data=FOLDER

rebuilds the shipped parameters and prints how well they predict networks left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from nas.accuracy.features import Floats, RunArrays, features, features_of, not_covered
from nas.accuracy.joint import JointPrediction
from nas.accuracy.networks import TrainedNetwork
from nas.accuracy.process import Evaluator, Posterior
from nas.accuracy.recipes import TARGETS, checked_target
from nas.accuracy.source import Accuracy, AccuracyError, AccuracyOrError
from search_spaces.architecture import Architecture

SHIPPED_PARAMETERS = Path(__file__).parent / "predictor.safetensors"
DEFAULT_RECIPE = TARGETS[0]

# Beyond this standard deviation of what networks have in common (of the log error, without the noise of a
# training run) the data do not carry a prediction: MAX_SPREAD_REASON
MAX_SPREAD = 0.08
_TOO_UNCERTAIN = (
    "the network is unlike everything the ImageNet predictor was fitted on: what is known of its error is "
    f"uncertain by more than {MAX_SPREAD:.0%}"
)


class Predictor:
    """Top-1 under one recipe of training, 1000 classes.

    Args:
        posterior: fitted parameters.
        recipe: how networks are trained, one of :data:`nas.accuracy.recipes.TARGETS` or another recipe that
            the parameters know.

    Raises:
        RecipeError: if the parameters do not know the recipe.
    """

    def __init__(self, posterior: Posterior, recipe: str = DEFAULT_RECIPE) -> None:
        self._posterior = posterior
        self.recipe = checked_target(recipe, posterior.recipe_names)
        self._evaluator = Evaluator(posterior, recipe)

    @classmethod
    def load(cls, path: Path = SHIPPED_PARAMETERS, recipe: str = DEFAULT_RECIPE) -> Predictor:
        """Read fitted parameters.

        Raises:
            ParametersError: if the file cannot be read or is of another version.
            RecipeError: if the parameters do not know the recipe.
        """
        return cls(Posterior.load(path), recipe)

    def save(self, path: Path, notes: Mapping[str, str]) -> None:
        """Write the parameters with notes on where they come from."""
        self._posterior.save(path, notes)

    @property
    def recipe_names(self) -> tuple[str, ...]:
        """Recipes that the parameters know."""
        return self._posterior.recipe_names

    def with_networks(self, networks: Sequence[TrainedNetwork]) -> Predictor:
        """A predictor that has seen these networks too.

        Raises:
            AccuracyError: if one is far outside the data, giving the reason.
        """
        inputs = features_of([each.architecture for each in networks])
        log_error = np.log([100 - each.top1 for each in networks])
        recipes = [each.recipe for each in networks]
        return Predictor(self._posterior.conditioned(inputs, log_error, recipes), self.recipe)

    def joint(self, architectures: Mapping[str, Architecture]) -> JointPrediction:
        """Predictions of several networks with how their errors go together.

        Args:
            architectures: by id.

        Raises:
            AccuracyError: if one is far outside the data, giving the reason.
        """
        inputs = features_of(list(architectures.values()))
        top1, covariance, noise = self._posterior.joint(inputs, self.recipe)
        return JointPrediction(self.recipe, tuple(architectures), top1, covariance, noise)

    def predict(self, architecture: Architecture) -> tuple[float, float]:
        """Top-1 of one training run and its standard deviation, in percentage points.

        Raises:
            AccuracyError: if the architecture is far outside the data, giving the reason.
        """
        found = self.accuracy(architecture)
        assert found.deviation is not None
        return found.top1, found.deviation

    @property
    def expensive(self) -> bool:
        """See :class:`nas.accuracy.source.SearchSource`."""
        return False

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

    def accuracies(self, architectures: Sequence[Architecture]) -> list[AccuracyOrError]:
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
        top1, deviation, spread = self._evaluator(features(batch))
        refused = ~(batch.covered() & (spread <= MAX_SPREAD))
        top1[refused] = deviation[refused] = np.nan
        return top1, deviation


@lru_cache(maxsize=1)
def shipped_predictor() -> Predictor:
    """The predictor with the parameters that come with the package, for the default recipe.

    Raises:
        ParametersError: if they are missing or of another version.
    """
    return Predictor.load()
