import random
import warnings
from collections.abc import Iterator
from dataclasses import replace

import onnxruntime
import pytest
import timm
import torch
import torchvision
from fvcore.nn import FlopCountAnalysis

from nas.cost import cost, layer_cost
from nas.graphs.onnx import onnx_model
from nas.latency.calibration import FEATURES, layer_features
from nas.latency.preset import work
from nas.network import (
    TIMM_V4_NORM_EPSILON,
    TORCHVISION_V2_NORM_EPSILON,
    Network,
    WeightsError,
    build_layer,
    load_torchvision_weights,
)
from search_spaces import blocks
from search_spaces.architecture import Architecture
from search_spaces.blocks import BLOCKS, ArchitectureError, Block, BlockKind, Head, Stem
from search_spaces.layers import LayerKey, LayerKeyError, layer_keys, reachable_layer_keys
from search_spaces.ops import Add, Conv, Operator
from search_spaces.references import FAMILIES, reference
from search_spaces.space import SearchSpace


def _random_statistics(model: torch.nn.Module) -> None:
    # Fresh batch norms are identities; give them something to get wrong.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)


@pytest.mark.parametrize(
    ("name", "norm_epsilon"),
    [
        ("mobilenet_v2", TORCHVISION_V2_NORM_EPSILON),
        ("mobilenet_v3_large", None),
        ("mobilenet_v3_small", None),
    ],
)
def test_torchvisions_weights_give_torchvisions_outputs(name: str, norm_epsilon: float | None) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    _random_statistics(theirs)
    ours = Network(reference(name)).eval()
    load_torchvision_weights(ours, theirs.state_dict(), norm_epsilon)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.allclose(ours(images), theirs(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mobilenetv4_conv_small", "mobilenetv4_conv_medium"])
def test_timms_weights_give_timms_outputs(name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    _random_statistics(theirs)
    ours = Network(reference(name)).eval()
    load_torchvision_weights(ours, theirs.state_dict(), TIMM_V4_NORM_EPSILON)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = theirs(images)
        assert torch.allclose(ours(images), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_foreign_weights_are_refused() -> None:
    network = Network(reference("mobilenet_v3_small"))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match="tensors"):
        load_torchvision_weights(network, torchvision.models.mobilenet_v2(weights=None).state_dict())
    other = Network(reference("mobilenet_v3_small", classes=10)).state_dict()
    with pytest.raises(WeightsError, match=r"has shape \(10, 1024\)"):
        load_torchvision_weights(network, other)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def _fvcore_macs(network: torch.nn.Module, resolution: int) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(network.eval(), torch.randn(1, 3, resolution, resolution))
        counted = analysis.unsupported_ops_warnings(False).by_operator()
    return int(counted["conv"] + counted["linear"])


@pytest.mark.parametrize("share", [slice(0, None, 6), pytest.param(slice(1, None), marks=pytest.mark.slow)])
def test_cost_equals_fvcores(
    mobilenet_space: SearchSpace, mobilenetv4_space: SearchSpace, share: slice
) -> None:
    generator = random.Random(11)
    members = [mobilenet_space.sample(generator) for _ in range(4)]
    members += [mobilenetv4_space.sample(generator) for _ in range(2)]
    for architecture in [*members, *(reference(name) for name in FAMILIES)][share]:
        network = Network(architecture)
        counted = cost(architecture)
        assert counted.macs == _fvcore_macs(network, architecture.resolution)
        assert counted.parameters == sum(each.numel() for each in network.parameters())


def test_the_network_is_the_sum_of_its_layers() -> None:
    architecture = reference("mobilenet_v3_large")
    layers = [build_layer(key) for key in layer_keys(architecture)]
    assert sum(p.numel() for layer in layers for p in layer.parameters()) == cost(architecture).parameters
    for key, layer in zip(layer_keys(architecture), layers, strict=True):
        assert layer_cost(key).parameters == sum(each.numel() for each in layer.parameters())


def test_keys_chain_through_the_network(mobilenet_space: SearchSpace) -> None:
    architecture = mobilenet_space.sample(random.Random(5))
    features = torch.randn(1, 3, architecture.resolution, architecture.resolution)
    for key in layer_keys(architecture):
        assert features.shape == key.input_shape
        features = build_layer(key).eval()(features)
    assert features.shape == (1, 1000)


def test_every_reachable_key_has_a_text_that_reads_back(
    mobilenet_space: SearchSpace, mobilenetv4_space: SearchSpace
) -> None:
    keys = reachable_layer_keys(mobilenet_space) | reachable_layer_keys(mobilenetv4_space.restricted([224]))
    assert len({str(key) for key in keys}) == len(keys)
    assert all(LayerKey.parse(str(key)) == key for key in keys)


def test_keys_of_v1_of_v4_and_of_strided_skips_read_back() -> None:
    skip = Block("skip", 1, 24, 24, 40, 2, "relu", False, False)
    v4 = [*layer_keys(reference("mobilenetv4_conv_small")), *layer_keys(reference("mobilenetv4_conv_medium"))]
    for key in (*layer_keys(reference("mobilenet_v1")), *v4, LayerKey(28, 24, skip)):
        assert LayerKey.parse(str(key)) == key
    assert str(v4[2]) == "pair_56_i32_x96_o64_k3_s2_relu"
    assert str(v4[8]) == "uib_14_i96_x384_o96_a3_k0_s1_relu"
    assert str(v4[15]) == "head_7_i128_c960x1_h1280b1_n1000_relu"


# A universal inverted bottleneck by its name in the paper: its convolutions as (kernel, stride, depthwise).
_VARIANTS = {
    "uib_14_i16_x32_o24_a5_k3_s2_relu": (
        "ExtraDW",
        [(5, 1, True), (1, 1, False), (3, 2, True), (1, 1, False)],
    ),
    "uib_14_i16_x32_o24_a0_k3_s2_relu": ("IB", [(1, 1, False), (3, 2, True), (1, 1, False)]),
    "uib_14_i16_x32_o24_a3_k0_s2_relu": ("ConvNext", [(3, 2, True), (1, 1, False), (1, 1, False)]),
    "uib_14_i16_x32_o24_a0_k0_s2_relu": ("FFN", [(1, 2, False), (1, 1, False)]),
}


@pytest.mark.parametrize("text", _VARIANTS)
def test_variants_of_the_universal_inverted_bottleneck(text: str) -> None:
    key = LayerKey.parse(text)
    block = key.part
    assert isinstance(block, Block)
    title, convolutions = _VARIANTS[text]
    found = [each for each in block.operators(key.size) if isinstance(each, Conv)]
    assert [(each.kernel, each.stride, each.depthwise) for each in found] == convolutions
    # The one before the expansion and the projection are linear.
    assert [each.activation for each in found if each.in_channels == 16 and each.depthwise] in ([], [None])
    assert found[-1].activation is None
    assert [each.out_size for each in found][-1] == 7
    assert BLOCKS[block.kind].printed(block).startswith(title)
    kept = replace(block, stride=1, out_channels=16)
    assert isinstance(kept.operators(1)[-1], Add)
    assert not any(isinstance(each, Add) for each in block.operators(1))


@pytest.mark.parametrize("kind", ["inverted_residual", "fused_inverted_bottleneck", "convolution_pair"])
def test_only_the_universal_bottleneck_has_optional_depthwise_convolutions(kind: str) -> None:
    with pytest.raises(ArchitectureError, match="has no start_kernel"):
        Block(kind, 3, 16, 64, 24, start_kernel=3)
    with pytest.raises(ArchitectureError, match="kernel must be an odd positive integer"):
        Block(kind, 0, 16, 64, 24)
    with pytest.raises(ArchitectureError, match="start_kernel must be 0 or an odd positive integer"):
        Block("universal_inverted_bottleneck", 3, 16, 64, 24, start_kernel=2)
    with pytest.raises(ArchitectureError, match="has an expansion convolution"):
        Block("universal_inverted_bottleneck", 3, 16, 16, 24, expansion_conv=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ir_56",
        "ir_56_i24_x72_o40_k4_s2_relu",
        "ir_56_i24_x72_o40_a3_k3_s2_relu",
        "uib_56_i24_x0_o40_a3_k3_s2_relu",
        "head_7_i128_c960x1_h0b1_n1000_relu",
        "head_7_i128_c960x1_h1280b2_n1000_relu",
        "stem_224_o16_k3_gelu",
        "a;b",
    ],
)
def test_other_texts_name_no_layer(text: str) -> None:
    with pytest.raises(LayerKeyError, match="names no layer"):
        LayerKey.parse(text)


def test_identities_cost_nothing_and_strided_skips_are_convolutions() -> None:
    identity = Block("skip", 1, 16, 16, 16, 1, "relu", False, False)
    strided = Block("skip", 1, 16, 16, 32, 2, "relu", False, False)
    architecture = Architecture(32, Stem(16), (identity, strided), Head(0), classes=10)
    assert len(layer_keys(architecture)) == 3
    network = Network(architecture).eval()
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    assert cost(architecture).macs == _fvcore_macs(network, 32)


def test_a_new_kind_of_block_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built, counted, exported, keyed, featured and printed without another line of code."""

    def shrink(block: Block, size: int) -> Iterator[Operator]:
        yield Conv(
            size, block.in_channels, block.out_channels, block.kernel, block.stride, 1, block.activation
        )

    kind = BlockKind(shrink, "plain", "conv2d, {kernel}×{kernel}", letters="ioks")
    monkeypatch.setitem(blocks.BLOCKS, "plain", kind)
    row = Block("plain", 3, 16, 16, 24, 2, "relu", expansion_conv=False)
    network = Architecture(32, Stem(16), (row,), Head(), classes=10)
    assert Architecture.from_yaml(network.to_yaml()) == network
    key = layer_keys(network)[1]
    assert str(key) == "plain_16_i16_o24_k3_s2_relu"
    assert LayerKey.parse(str(key)) == key
    assert layer_cost(key).macs == 16 * 24 * 9 * 64
    images = torch.randn(1, 3, 32, 32)
    module = Network(network).eval()
    session = onnxruntime.InferenceSession(onnx_model(module, images.shape).SerializeToString())
    (logits,) = session.run(None, {"input": images.numpy()})
    assert torch.allclose(torch.from_numpy(logits), module(images), atol=1e-4)
    assert len(layer_features(key)) == len(FEATURES) - 1
    assert "conv2d, 3×3" in network.to_markdown()
    assert work(key)[0] == pytest.approx(layer_cost(key).macs / 1e6)


@pytest.mark.parametrize(
    ("text", "hswish_values", "within_values"),
    [
        # V1's block with h-swish applies it twice; V3's head too; a strided skip has no depthwise map.
        ("ds_28_i64_o128_k3_s1_hswish", 64 * 28 * 28 + 128 * 28 * 28, 64 * 28 * 28),
        ("head_7_i160_c960x1_h1280_n1000_hswish", 960 * 49 + 1280, 960 * 49),
        ("skip_14_i24_o40_s2", 0, 0),
        ("head_7_i320_c1280x1_h0_n1000_relu6", 0, 1280 * 49),
    ],
)
def test_calibration_counts_what_is_built(text: str, hswish_values: int, within_values: int) -> None:
    features = dict(zip(FEATURES[1:], layer_features(LayerKey.parse(text)), strict=True))
    assert features["hswish_mb"] == pytest.approx(hswish_values * 4 / 1e6)
    assert features["expanded_mb"] == pytest.approx(within_values * 4 / 1e6)
    applied = [
        each for each in build_layer(LayerKey.parse(text)).modules() if isinstance(each, torch.nn.Hardswish)
    ]
    assert bool(applied) == bool(hswish_values)


def test_peak_memory_holds_a_kept_input() -> None:
    key = LayerKey.parse("ir_28_i40_x120_o40_k5_s1_relu6")
    # While the depthwise convolution runs, its input, its output and the block's input are held.
    assert layer_cost(key).peak_values == (120 + 120 + 40) * 28 * 28
    wider = LayerKey.parse("ir_28_i40_x120_o48_k5_s1_relu6")
    assert layer_cost(wider).peak_values == (120 + 120) * 28 * 28
    assert cost(reference("mobilenet_v2")).peak_values == 96 * (112**2 + 56**2)


def test_an_explicit_width_of_squeeze_and_excitation() -> None:
    key = LayerKey.parse("ir_28_i40_x120_o40_k5_s1_se_q10_swish")
    assert isinstance(key.part, Block)
    assert key.part.squeezed_channels == 10
    quarter = LayerKey.parse("ir_28_i40_x120_o40_k5_s1_se_swish")
    assert layer_cost(quarter).parameters - layer_cost(key).parameters == (32 - 10) * (2 * 120 + 1)
    # The field came later: tables without it keep their ids.
    plain = Architecture(32, Stem(16), (Block("inverted_residual", 3, 16, 64, 16, se=True),), Head())
    assert "se_channels" not in plain.to_yaml()
    wide = Architecture(32, Stem(16), (replace(plain.blocks[0], se_channels=8),), Head())
    assert Architecture.from_yaml(wide.to_yaml()) == wide
    assert wide.id != plain.id
