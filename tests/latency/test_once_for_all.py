"""Latency tables in once-for-all's form, read back as its MBv3LatencyTable reads them."""

import math

import pytest
import yaml

from nas.latency.once_for_all import once_for_all
from nas.latency.table import Entry, LatencyTable, TableError, TableHeader
from search_spaces.architecture import Architecture
from search_spaces.layers import layer_keys
from search_spaces.references import reference

HEADER = TableHeader("host", "cpu", "onnxruntime", "1", "fp32", 1, "2026-01-01T00:00:00+00:00")


def _table(*networks: Architecture) -> LatencyTable:
    keys = dict.fromkeys(key for each in networks for key in layer_keys(each))
    entries = {key: Entry(0.1 + 0.01 * number, 0.002, 40, "measured") for number, key in enumerate(keys)}
    return LatencyTable(HEADER, entries)


def _their_sum(lut: dict[str, dict[str, float]], network: Architecture) -> float:
    """As ``predict_network_latency`` asks: from the shapes, one query a layer."""
    side, size = network.resolution, (network.resolution + 1) // 2
    total = lut[f"Conv-input:{side}x{side}x3-output:{size}x{size}x{network.stem.channels}"]["mean"]
    for block in network.blocks:
        out = int((size - 1) / block.stride + 1)
        infos = [
            "expanded_conv",
            f"input:{size}x{size}x{block.in_channels}",
            f"output:{out}x{out}x{block.out_channels}",
            f"expand:{block.expanded_channels:d}",
            f"kernel:{block.kernel:d}",
            f"stride:{block.stride:d}",
            f"idskip:{block.stride == 1 and block.in_channels == block.out_channels:d}",
            f"se:{block.se:d}",
            f"hs:{block.activation == 'hswish':d}",
        ]
        total += lut["-".join(infos)]["mean"]
        size = out
    head, wide = network.head, network.head.conv_channels
    total += lut[f"Conv_1-input:{size}x{size}x{network.out_channels}-output:{size}x{size}x{wide}"]["mean"]
    total += lut[f"AvgPool2D-input:{size}x{size}x{wide}-output:1x1x{wide}"]["mean"]
    total += lut[f"Conv_2-input:1x1x{wide}-output:1x1x{head.hidden_channels}"]["mean"]
    return total + lut[f"Logits-input:1x1x{head.hidden_channels}-output:{network.classes}"]["mean"]


@pytest.mark.parametrize("side", [224, 160, 200])
@pytest.mark.parametrize("name", ["mobilenet_v3_large", "mobilenet_v3_small"])
def test_their_sum_of_layers_is_ours(name: str, side: int) -> None:
    network = reference(name, side)
    table = _table(network)
    made = once_for_all(table)
    lut = yaml.safe_load(made.text)
    assert math.isclose(_their_sum(lut, network), table.raw_ms(network), rel_tol=1e-9)
    assert made.left_out == 0
    assert all(set(each) == {"mean", "std", "count"} for each in lut.values())


def test_what_has_no_name_there_is_counted_not_renamed() -> None:
    large, second = reference("mobilenet_v3_large"), reference("mobilenet_v2")
    made = once_for_all(_table(large, second))
    # V2 has ReLU6 throughout, and no hidden layer: not one of its layers is written.
    assert made.left_out == len(set(layer_keys(second)))
    assert math.isclose(
        _their_sum(yaml.safe_load(made.text), large), _table(large).raw_ms(large), rel_tol=1e-9
    )
    with pytest.raises(TableError, match="no layer of the table of host has a name"):
        once_for_all(_table(second))
    estimate = _table(large).with_entries({}, statistic="estimate")
    with pytest.raises(TableError, match="nothing measured"):
        once_for_all(estimate)
