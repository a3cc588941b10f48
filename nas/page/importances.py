"""Which parameters matter: how much of the variation between trials each one explains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalChoiceType, FloatDistribution
from optuna.trial import FrozenTrial

from nas.page.report_data import Importance

# On all trials of a long study it would take many times longer.
MOST_TRIALS = 300
_FEWEST_FOR_IMPORTANCE = 20


def parameter_importances(trials: Sequence[FrozenTrial]) -> tuple[Importance, ...]:
    """Importances for accuracy and for latency by functional ANOVA (Hutter et al. 2014), highest first.

    Optuna leaves out parameters that some trials lack. Here a network lacks what does not count for
    it (the third block of a stage of two), so "absent" becomes one more choice of each parameter.
    A bounded number of candidates is looked at, evenly taken from all; too few give nothing.
    """
    candidates = [trial for trial in trials if trial.user_attrs["kind"] != "reference" and trial.params]
    if len(candidates) < _FEWEST_FOR_IMPORTANCE:
        return ()
    picked = np.linspace(0, len(candidates) - 1, min(len(candidates), MOST_TRIALS)).astype(int)
    candidates = [candidates[index] for index in picked]
    # By number, in their order: with a column for each choice, trees would be asked for all combinations.
    numbers: dict[str, dict[CategoricalChoiceType, int]] = {}
    for name in dict.fromkeys(name for trial in candidates for name in trial.params):
        found = {trial.params.get(name) for trial in candidates}
        if len(found - {None}) > 1:
            numbers[name] = {value: number for number, value in enumerate(sorted(found, key=_order))}
    if not numbers:
        return ()
    distributions: dict[str, BaseDistribution] = {
        name: FloatDistribution(-0.5, len(each) - 0.5) for name, each in numbers.items()
    }
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize", "minimize"])
    study.add_trials(
        optuna.create_trial(
            values=[trial.user_attrs["top1"], trial.user_attrs["latency_ms"]],
            params={name: each[trial.params.get(name)] for name, each in numbers.items()},
            distributions=distributions,
        )
        for trial in candidates
    )
    accuracy, latency = (_shares(study, index) for index in range(2))
    optuna.logging.set_verbosity(verbosity)
    found_importances = (
        Importance(name, float(accuracy.get(name, 0.0)), float(latency.get(name, 0.0))) for name in numbers
    )
    return tuple(sorted(found_importances, key=lambda each: each.accuracy, reverse=True))


def _shares(study: optuna.Study, index: int) -> dict[str, float]:
    """The share of the variation of a value that each parameter explains; empty where nothing varies."""
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=16, max_depth=8, seed=0)
    try:
        return optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda trial: trial.values[index]
        )
    except (RuntimeError, ValueError):
        return {}


def _order(value: CategoricalChoiceType) -> tuple[bool, float, str]:
    """Sorts choices: none, numbers by size, texts."""
    return value is not None, 0.0 if value is None or isinstance(value, str) else float(value), str(value)
