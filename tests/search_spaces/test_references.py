import json
from pathlib import Path

import pytest
import timm
import torch

from nas.cost import cost
from search_spaces.references import FAMILIES, UnknownReferenceError, published_top1, reference

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "parameters.json").read_text())


@pytest.mark.parametrize("name", GOLDEN)
def test_parameters_are_the_papers(name: str) -> None:
    assert cost(reference(name)).parameters == GOLDEN[name]


@pytest.mark.parametrize(
    ("timm_name", "name"),
    [
        ("mobilenetv1_100", "mobilenet_v1"),
        ("mobilenetv1_125", "mobilenet_v1_125"),
        ("mobilenetv2_035", "mobilenet_v2_035"),
        ("mobilenetv2_050", "mobilenet_v2_050"),
        ("mobilenetv2_075", "mobilenet_v2_075"),
        ("mobilenetv2_140", "mobilenet_v2_140"),
        ("mobilenetv3_large_075", "mobilenet_v3_large_075"),
        ("mobilenetv3_large_150d", "mobilenet_v3_large_150d"),
        ("mobilenetv3_small_050", "mobilenet_v3_small_050"),
        ("mobilenetv3_small_075", "mobilenet_v3_small_075"),
        ("mobilenetv4_conv_small_035", "mobilenetv4_conv_small_035"),
        ("mobilenetv4_conv_small_050", "mobilenetv4_conv_small_050"),
        ("tf_mobilenetv3_large_minimal_100", "mobilenet_v3_large_minimalistic"),
        ("tf_mobilenetv3_small_minimal_100", "mobilenet_v3_small_minimalistic"),
    ],
)
def test_parameters_are_timms(timm_name: str, name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(timm_name)
    assert cost(reference(name)).parameters == sum(each.numel() for each in theirs.parameters())


# MACs and parameters in millions as published in the sources of search_spaces/mobilenet.py, which cut
# MACs down to whole millions.
@pytest.mark.parametrize(
    ("name", "resolution", "macs_m", "params_m"),
    [
        ("mobilenet_v1", 224, 569, 4.24),
        ("mobilenet_v1_050", 160, 77, 1.34),
        ("mobilenet_v1_025", 128, 14, 0.47),
        ("mobilenet_v2", 224, 300, 3.47),
        ("mobilenet_v2_140", 224, 582, 6.06),
        ("mobilenet_v2_035", 96, 11, 1.66),
        ("mobilenet_v3_large", 224, 217, 5.4),
        ("mobilenet_v3_large_075", 224, 155, 4.0),
    ],
)
def test_cost_is_near_the_published_one(name: str, resolution: int, macs_m: float, params_m: float) -> None:
    counted = cost(reference(name, resolution))
    assert counted.macs / 1e6 == pytest.approx(macs_m, rel=0.04, abs=1)
    assert counted.parameters / 1e6 == pytest.approx(params_m, rel=0.03)


def test_minimalistic_has_neither_se_nor_hswish_nor_large_kernels() -> None:
    for name in FAMILIES:
        if name.endswith("minimalistic"):
            rows = reference(name).blocks
            assert all(not row.se and row.activation == "relu" and row.kernel == 3 for row in rows)
            assert [row.out_channels for row in rows] == [
                row.out_channels for row in reference(name.removesuffix("_minimalistic")).blocks
            ]


def test_resolution_in_the_name_wins() -> None:
    assert reference("mobilenet_v2_075_r160").resolution == 160
    assert reference("mobilenet_v2_075", resolution=192).resolution == 192


@pytest.mark.parametrize(
    "name", ["mobilenet_v4", "resnet50", "mobilenet_v3", "mobilenet_v2_", "mobilenet_v2_000"]
)
def test_unknown_reference_lists_the_known(name: str) -> None:
    with pytest.raises(UnknownReferenceError, match="mobilenet_v3_large"):
        reference(name)


def test_published_accuracies() -> None:
    assert published_top1("mobilenet_v3_large") == 75.2
    assert published_top1("mobilenet_v2_075", 160) == 66.4
    assert published_top1("mobilenet_v3_large_150d") is None
    assert published_top1("mobilenet_v3_small", 160) is None
    assert published_top1("MobileNetV4-Conv-Medium", 256) == 79.9


@pytest.mark.parametrize(
    ("name", "timm_name", "parameters", "millions", "top1"),
    [
        ("efficientnet_lite0", "efficientnet_lite0", 4_652_008, 386, 75.1),
        ("efficientnet_b0", "efficientnet_b0", 5_288_548, 385, 77.1),
        ("mnasnet_a1", "semnasnet_100", 3_887_038, 312, 75.2),
        ("mobilenetv4_conv_small", "mobilenetv4_conv_small", 3_774_024, 186, 73.8),
        ("mobilenetv4_conv_medium", "mobilenetv4_conv_medium", 9_715_512, 828, 79.1),
    ],
)
def test_what_others_found_is_a_reference_too(
    name: str, timm_name: str, parameters: int, millions: int, top1: float
) -> None:
    spent = cost(reference(name))
    assert spent.parameters == parameters
    assert spent.parameters == sum(each.numel() for each in timm.create_model(timm_name).parameters())
    assert spent.macs / 1e6 == pytest.approx(millions, abs=3)
    assert published_top1(name) == top1
    assert name not in FAMILIES
