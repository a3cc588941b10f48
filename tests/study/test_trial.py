"""What trials say of their networks, on the disk and in memory."""

from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from nas.accuracy.source import Accuracy, Judgement
from nas.study.trial import RESULTS, Trial
from search_spaces.errors import InputError
from search_spaces.gate import Gate
from search_spaces.references import reference

GATE = Gate("the study 's'", InputError)
V2 = reference("mobilenet_v2", 32, 10)
JUDGEMENT = Judgement(70.0, 65.0, 20.0, "cats", 300)
# As the first versions wrote it.
WRITTEN: dict[str, Any] = {
    "architecture": "0123456789",
    "kind": "candidate",
    "name": None,
    "latency_ms": 8.5,
    "latency_source": "table",
    "macs": 12345678,
    "parameters": 54321,
    "top1": 71.25,
    "deviation": 0.75,
    "accuracy_source": "predicted",
}
CLAIMED = {name: value for name, value in WRITTEN.items() if name not in RESULTS}


def frozen(attributes: dict[str, Any], state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    values = [1.0, 2.0] if state == TrialState.COMPLETE else None
    return optuna.create_trial(state=state, values=values, user_attrs=attributes)


def test_attributes_are_called_as_they_always_were() -> None:
    trial = Trial("0123456789", "candidate", 8.5, "table", 12345678, 54321)
    assert trial.attributes() == CLAIMED
    assert Trial.of(frozen(CLAIMED, TrialState.RUNNING), GATE) == trial
    told = Trial.of(frozen(WRITTEN), GATE)
    assert told is not None
    assert told.accuracy == Accuracy(71.25, "predicted", 0.75)
    assert list(told.attributes().items()) == list(WRITTEN.items())


@pytest.mark.parametrize(
    ("trial", "state"),
    [
        (
            Trial(V2.id, "reference", 8.5, "measured", 1, 2, "mobilenet_v2", V2, Accuracy(70.0, "given")),
            TrialState.COMPLETE,
        ),
        (
            Trial(
                "0123456789",
                "refinement",
                8.5,
                "predicted",
                1,
                2,
                accuracy=Accuracy.measured(JUDGEMENT, ((3, 60.0), (9, 70.0))),
            ),
            TrialState.COMPLETE,
        ),
        (
            Trial(
                "0123456789",
                "candidate",
                8.5,
                "estimated",
                1,
                2,
                accuracy=Accuracy.measured(JUDGEMENT, ((3, 60.0),), stopped=True),
            ),
            TrialState.PRUNED,
        ),
        (Trial("0123456789", "candidate", 8.5, "table", 1, 2, error="row 3: no"), TrialState.FAIL),
        (
            Trial("0123456789", "candidate", 8.5, "table", 1, 2, accuracy=Accuracy(-3.5e4, "proxy")),
            TrialState.COMPLETE,
        ),
    ],
)
def test_what_was_written_is_read(trial: Trial, state: TrialState) -> None:
    assert Trial.of(frozen(trial.attributes(), state), GATE) == trial


def test_trials_of_others_are_none_and_damaged_ones_are_named() -> None:
    assert Trial.of(frozen({"mine": 1}), GATE) is None
    for change, message in (
        ({"architecture": "../../etc"}, "which is no id"),
        ({"kind": "other"}, "kind"),
        ({"latency_ms": "fast"}, "latency_ms"),
        ({"top1": 171.0}, "top1"),
        ({"macs": -1}, "macs"),
        ({"curve": [[1]]}, "the study 's'"),
        ({"judgement": {"top1": 1}}, "judgement"),
    ):
        with pytest.raises(InputError, match=message):
            Trial.of(frozen(WRITTEN | change), GATE)
