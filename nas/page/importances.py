"""Which parameters matter: how much of the variation between trials each one explains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalChoiceType, CategoricalDistribution
from optuna.trial import FrozenTrial

from nas.page.report_data import Importance

# fANOVA on this many trials takes a few seconds; on all of a long study it would take minutes.
_TRIALS_FOR_IMPORTANCE = 300
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
    picked = np.linspace(0, len(candidates) - 1, min(len(candidates), _TRIALS_FOR_IMPORTANCE)).astype(int)
    candidates = [candidates[index] for index in picked]
    values: dict[str, list[CategoricalChoiceType]] = {}
    for trial in candidates:
        for name, value in trial.params.items():
            values.setdefault(name, [])
            if value not in values[name]:
                values[name].append(value)
    choices = {name: [None, *found] for name, found in values.items() if len(found) > 1}
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(each) for name, each in choices.items()
    }
    if not choices:
        return ()
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shares = []
    for attribute in ("top1", "latency_ms"):
        study = optuna.create_study()
        study.add_trials(
            optuna.create_trial(
                value=trial.user_attrs[attribute],
                params={name: trial.params.get(name) for name in choices},
                distributions=distributions,
            )
            for trial in candidates
        )
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=16, max_depth=8, seed=0)
        try:
            shares.append(optuna.importance.get_param_importances(study, evaluator=evaluator))
        except (RuntimeError, ValueError):  # no variation at all to explain
            shares.append({})
    optuna.logging.set_verbosity(verbosity)
    accuracy, latency = shares
    found_importances = (
        Importance(name, float(accuracy.get(name, 0.0)), float(latency.get(name, 0.0))) for name in choices
    )
    return tuple(sorted(found_importances, key=lambda each: each.accuracy, reverse=True))
