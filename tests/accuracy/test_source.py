from dataclasses import replace

import pytest

from nas.accuracy.source import Accuracy, AccuracyError, Int8Penalty, ask
from search_spaces.architecture import Architecture
from search_spaces.references import reference

V2, V3 = reference("mobilenet_v2"), reference("mobilenet_v3_large")


class Guess:
    expensive = False

    def accuracy(self, architecture: Architecture) -> Accuracy:
        if architecture.resolution != 224:
            raise AccuracyError("at 224 only")
        return Accuracy(75.0, "predicted", 0.5)


def test_int8_costs_what_was_stated_for_the_worst_activation() -> None:
    source = Int8Penalty(Guess(), {"hswish": 1.5, "relu": 0.25})
    assert source.accuracy(V2) == Accuracy(75.0, "predicted", 0.5)  # ReLU6: nothing was stated
    v3 = source.accuracy(V3)  # h-swish and ReLU
    assert v3.top1 == pytest.approx(73.5)
    assert v3.source == "predicted"
    minimalistic = reference("mobilenet_v3_large_minimalistic")
    first, second, third = ask(source, [V3, minimalistic, replace(V2, resolution=192)])
    assert first == v3
    assert isinstance(second, Accuracy)
    assert second.top1 == 74.75
    assert isinstance(third, AccuracyError)
