import math

import pytest

from nas.accuracy.source import Accuracy, Judgement
from search_spaces.errors import InputError
from search_spaces.gate import Gate

NAMES = ("common", "rare", "odd")
LABELS = [0] * 80 + [1] * 4 + [2] * 4


def test_always_the_most_frequent_class_looks_good_and_is_chance() -> None:
    found = Judgement.of([0] * 88, LABELS, NAMES)
    assert found.top1 == found.majority == pytest.approx(90.909, abs=1e-3)
    assert found.majority_class == "common"
    assert found.class_mean == pytest.approx(100 / 3)
    assert not found.above_chance


def test_all_right_is_above_chance_and_not_certain() -> None:
    found = Judgement.of(LABELS, LABELS, NAMES)
    assert (found.top1, found.class_mean) == (100, 100)
    assert found.above_chance
    assert 0.5 < found.deviation < 2


def test_the_deviation_is_binomial() -> None:
    labels = [number % 2 for number in range(400)]
    found = Judgement.of([0] * 400, labels, NAMES)
    assert found.deviation == pytest.approx(100 * math.sqrt(0.25 / 400), rel=0.01)
    accuracy = Accuracy.measured(found)
    assert (accuracy.top1, accuracy.source, accuracy.deviation) == (50, "measured", found.deviation)


def test_it_is_written_and_read() -> None:
    found = Judgement.of([0] * 88, LABELS, NAMES)
    assert Gate("study").record("judgement", Judgement, found.to_dict()) == found
    with pytest.raises(InputError, match="top1"):
        Gate("study").record("judgement", Judgement, {**found.to_dict(), "top1": 120})
