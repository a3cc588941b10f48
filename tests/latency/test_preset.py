import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nas.cost import cost
from nas.latency.preset import (
    TERMS,
    EstimatedLayers,
    EstimateError,
    available,
    work,
)
from search_spaces.blocks import Block, Head, Stem
from search_spaces.layers import LayerKey, layer_keys, reachable_layer_keys
from search_spaces.references import reference
from search_spaces.space import SearchSpace

# Single-core latency at 224 px in ms, fp32; no level was fitted to it: Paddle-Lite v2.11 on an
# RK3399 (Cortex-A72 at 1.8 GHz, the Raspberry Pi 4's core and clock).
RK3399_MS = {
    "mobilenet_v1": 103.39,
    "mobilenet_v2": 73.37,
    "mobilenet_v3_large": 63.34,
    "mobilenet_v3_small": 21.67,
}
PEAK_GMACS_PER_S = 7.2  # a Cortex-A72 at 1.8 GHz: four fp32 MACs a cycle


@pytest.fixture(scope="module")
def rpi4() -> EstimatedLayers:
    return EstimatedLayers.load("rpi4")


@pytest.fixture(scope="module")
def keys(mobilenet_space: SearchSpace) -> list[LayerKey]:
    return random.Random(0).sample(sorted(reachable_layer_keys(mobilenet_space), key=str), 600)


def _network_ms(layers: EstimatedLayers, name: str) -> float:
    return sum(layers.layer_ms(key) for key in layer_keys(reference(name)))


def test_references_come_in_the_published_order(rpi4: EstimatedLayers) -> None:
    latencies = [_network_ms(rpi4, name) for name in RK3399_MS]
    assert latencies == sorted(latencies, reverse=True)


def test_the_same_core_in_another_runtime_is_met(rpi4: EstimatedLayers) -> None:
    ratios = {name: _network_ms(rpi4, name) / published for name, published in RK3399_MS.items()}
    level = np.exp(np.mean(np.log(list(ratios.values()))))
    assert level == pytest.approx(1, abs=0.2)  # ncnn against Paddle-Lite
    assert {name: ratio / level for name, ratio in ratios.items()} == pytest.approx(
        dict.fromkeys(RK3399_MS, 1.0), abs=0.1
    )


def test_no_core_is_promised_more_than_its_peak(rpi4: EstimatedLayers) -> None:
    for name in RK3399_MS:
        assert _network_ms(rpi4, name) > cost(reference(name)).macs / 1e6 / PEAK_GMACS_PER_S


def test_v3_large_beside_v2_as_single_thread_sources_have_it() -> None:
    for board in ("rpi3", "rpi4", "rpi5"):
        layers = EstimatedLayers.load(board)
        assert 0.78 <= _network_ms(layers, "mobilenet_v3_large") / _network_ms(layers, "mobilenet_v2") <= 0.86


def _bigger(key: LayerKey) -> list[LayerKey]:
    """The same layer with more of one thing."""
    part = key.part
    found = [replace(key, size=key.size + step) for step in (1, 2, 16)]
    if isinstance(part, Stem):
        found += [replace(key, part=replace(part, channels=part.channels + 8))]
        found += [replace(key, part=replace(part, kernel=5))]
    elif isinstance(part, Head):
        found += [replace(key, in_channels=key.in_channels + 8), replace(key, classes=key.classes + 1)]
        if part.hidden_channels:  # none at all is no narrower layer but another head
            found += [replace(key, part=replace(part, hidden_channels=part.hidden_channels + 8))]
        if part.conv_channels:
            found += [replace(key, part=replace(part, conv_channels=part.conv_channels + 8))]
    elif part.kind == "inverted_residual":
        wider = [replace(part, out_channels=part.out_channels + step) for step in (1, 8, 64)]
        if part.expansion_conv:
            wider += [replace(part, expanded_channels=part.expanded_channels + 8)]
        else:
            wider += [replace(part, expansion_conv=True)]
        wider += [replace(part, kernel=part.kernel + 2), replace(part, se=True)]
        wider += [replace(part, activation="hswish")]
        found += [replace(key, part=block) for block in wider]
        if part.expansion_conv:
            block = replace(part, in_channels=part.in_channels + 8)
            found.append(LayerKey(key.size, block.in_channels, block))
    return found


def test_more_of_anything_never_gets_faster(rpi4: EstimatedLayers, keys: list[LayerKey]) -> None:
    for key in keys:
        for bigger in _bigger(key):
            assert rpi4.layer_ms(bigger) >= rpi4.layer_ms(key), f"{bigger} against {key}"


def test_work_of_a_block_counted_by_hand() -> None:
    block = Block("inverted_residual", 5, 8, 24, 16, 2, "hswish", se=True)
    counted = dict(zip(TERMS, work(LayerKey(10, 8, block)), strict=True))
    squeezed = 8
    assert counted["depthwise_macs"] * 1e6 == pytest.approx(24 * 25 * 25)
    assert counted["pointwise_macs"] * 1e6 == pytest.approx(8 * 24 * 100 + 24 * 16 * 25 + 2 * 24 * squeezed)
    assert counted["activation_bytes"] * 1e6 == pytest.approx(
        4 * ((8 + 24) * 100 + (24 + 16) * 25 + 2 * (24 + squeezed))
    )
    # h-swish reads and writes after both convolutions; SE reads to pool, then reads and writes.
    assert counted["elementwise_bytes"] * 1e6 == pytest.approx(4 * (2 * 24 * 100 + 2 * 24 * 25 + 3 * 24 * 25))
    assert counted["operators"] == 5 + 4


def test_every_shipped_estimate_states_its_origin_and_error() -> None:
    assert available() == ("note10", "rpi3", "rpi4", "rpi5")
    for device in available():
        estimate = EstimatedLayers.load(device)
        errors = estimate.cross_validation
        assert 0 < errors.mean_absolute_percent < errors.worst_percent < 40
        assert all((estimate.source, estimate.licence, estimate.threads, estimate.precision))
        assert "onnxruntime" not in estimate.runtimes  # no public figure of these networks in it on Arm
        assert EstimatedLayers.from_json(estimate.to_json()) == estimate
        assert estimate.to_json() == Path(f"nas/latency/presets/{device}.json").read_text()


def test_an_unknown_board_is_named_with_those_there_are() -> None:
    with pytest.raises(EstimateError, match=r"'rk3588'.*rpi4"):
        EstimatedLayers.load("rk3588")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data | {"schema": 99}, "schema 1"),
        (lambda data: {each: data[each] for each in data if each != "coefficients_ms"}, "expected a mapping"),
        (lambda data: data | {"coefficients_ms": dict.fromkeys(TERMS, -1.0)}, "must be a number from 0"),
        (lambda data: [data], "must hold a mapping"),
    ],
)
def test_a_broken_estimate_is_refused(rpi4: EstimatedLayers, change: object, message: str) -> None:
    assert callable(change)
    with pytest.raises(EstimateError, match=message):
        EstimatedLayers.from_json(json.dumps(change(json.loads(rpi4.to_json()))))
