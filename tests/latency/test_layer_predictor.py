import random
from dataclasses import replace

import numpy as np
import pytest

from nas.latency.layer_predictor import GapFillingError, LayerPredictor
from nas.latency.preset import EstimatedLayers
from search_spaces.blocks import Block
from search_spaces.layers import LayerKey, operators, reachable_layer_keys
from search_spaces.ops import convolutions
from search_spaces.space import SearchSpace
from tests.cases import layer_ms
from tools.preset_adaptation import adaptation_errors


@pytest.fixture(scope="module")
def rpi4() -> EstimatedLayers:
    return EstimatedLayers.load("rpi4")


@pytest.fixture(scope="module")
def small_space(mobilenet_space: SearchSpace) -> SearchSpace:
    return replace(mobilenet_space.restricted([96]), width_multipliers=(1.0,))


@pytest.fixture(scope="module")
def keys(mobilenet_space: SearchSpace) -> list[LayerKey]:
    found = sorted(reachable_layer_keys(mobilenet_space), key=str)
    return random.Random(0).sample(found, 600)


def _other_device(estimate: EstimatedLayers, keys: list[LayerKey]) -> dict[LayerKey, float]:
    """A device three times faster, with dear depthwise kernels, cheap weights and some noise."""
    factors = np.array([0.3, 0.8, 0.2, 0.1, 0.3, 0.5])
    generator = np.random.default_rng(1)
    device = replace(estimate, coefficients=tuple(np.array(estimate.coefficients) * factors))
    return {key: device.layer_ms(key) * float(generator.lognormal(0, 0.02)) for key in keys}


@pytest.mark.slow
def test_a_handful_of_layers_tells_the_rates_of_a_device(rpi4: EstimatedLayers, keys: list[LayerKey]) -> None:
    measured = _other_device(rpi4, keys[:300])
    errors = adaptation_errors(rpi4, measured, counts=(10, 30, 100, 1000), draws=3)
    assert [error.layers for error in errors] == [10, 30, 100]
    predicted = [error.predicted_percent for error in errors]
    assert predicted == sorted(predicted, reverse=True)
    assert predicted[1] < 6
    assert predicted[2] < 0.2 * errors[2].factor_percent


def test_channels_beyond_whole_vectors_are_told_apart(rpi4: EstimatedLayers, keys: list[LayerKey]) -> None:
    blocks = [key for key in keys if isinstance(key.part, Block)]

    def slow(key: LayerKey) -> bool:
        return any(each.depthwise and each.out_channels % 16 for each in convolutions(operators(key)))

    even = [key for key in blocks if not slow(key)][:70]
    odd = [key for key in blocks if slow(key)][:130]
    measured = {key: rpi4.layer_ms(key) * (1.5 if slow(key) else 1.0) for key in (*even, *odd)}
    aside = [*even[:20], *odd[:20]]
    model = LayerPredictor({key: ms for key, ms in measured.items() if key not in aside})
    predicted = model.predict(aside)
    assert np.mean([abs(predicted[key].latency_ms / measured[key] - 1) for key in aside]) < 0.03


def test_the_stated_error_is_near_the_true_one(rpi4: EstimatedLayers, keys: list[LayerKey]) -> None:
    measured = _other_device(rpi4, keys[:300])
    used, aside = keys[:100], keys[100:300]
    model = LayerPredictor({key: measured[key] for key in used})
    predicted = model.predict(aside)
    true_error = np.mean([abs(predicted[key].latency_ms / measured[key] - 1) for key in aside])
    assert model.rows == 100
    assert 0.5 * true_error < model.error < 2 * true_error
    within = [
        abs(predicted[key].latency_ms - measured[key]) < 2 * predicted[key].deviation_ms for key in aside
    ]
    assert np.mean(within) > 0.8


def test_kinds_of_which_nothing_was_measured_are_told_by_the_physics(small_space: SearchSpace) -> None:
    keys = sorted(reachable_layer_keys(small_space), key=str)
    blocks = [key for key in keys if str(key).startswith("ir")]
    model = LayerPredictor({key: layer_ms(key) for key in random.Random(0).sample(blocks, 60)})
    head = next(key for key in keys if str(key).startswith("head"))
    found = model.predict([head])[head]
    assert found.latency_ms == pytest.approx(layer_ms(head), rel=0.6)
    assert found.deviation_ms > 0


def test_too_few_layers_or_latencies_that_are_none_are_refused(
    rpi4: EstimatedLayers, keys: list[LayerKey]
) -> None:
    measured = _other_device(rpi4, keys[:12])
    with pytest.raises(GapFillingError, match="9 measured layers are too few"):
        LayerPredictor(dict(list(measured.items())[:9]))
    with pytest.raises(GapFillingError, match="not a number"):
        LayerPredictor(measured | {keys[0]: float("nan")})


def test_the_order_of_layers_changes_nothing(rpi4: EstimatedLayers, keys: list[LayerKey]) -> None:
    measured = _other_device(rpi4, keys[:80])
    reverse = dict(reversed(list(measured.items())))
    assert LayerPredictor(measured).predict(keys[80:90]) == LayerPredictor(reverse).predict(keys[80:90])
