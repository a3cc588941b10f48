"""Published networks from ``timm`` as references beside the front, e.g. ``timm:efficientnet_lite0``.

The mobile networks that people would take instead of a searched one, each with the top-1 of one published
checkpoint. Sources: timm's ``results/results-imagenet.csv``, and for MobileNetV4, EfficientNet-B0's newer
recipe and HGNetV2 the model cards of the checkpoints named. Recipes differ by several points: a difference
from a searched network says something only where the recipes are alike. Weights are not downloaded.
"""

from __future__ import annotations

import difflib

from torch import nn

from nas.foreign.network import ForeignNetwork, ForeignNetworkError
from nas.network import operations_by_fvcore
from search_spaces.references import canonical_name

PREFIX = "timm:"
# Model, checkpoint, ImageNet top-1 in percent, side in pixels at which it was judged.
_PUBLISHED: dict[str, tuple[str, float, int]] = {
    "lcnet_100": ("ra2_in1k", 72.096, 224),
    "mobilenetv4_conv_small": ("e2400_r224_in1k", 73.8, 224),
    "spnasnet_100": ("rmsp_in1k", 74.086, 224),
    "mnasnet_100": ("rmsp_in1k", 74.650, 224),
    "tf_efficientnet_lite0": ("in1k", 74.830, 224),
    "fbnetc_100": ("rmsp_in1k", 75.130, 224),
    "semnasnet_100": ("rmsp_in1k", 75.450, 224),  # MnasNet-A1
    "efficientnet_lite0": ("ra_in1k", 75.480, 224),
    "mobilenetv3_large_100": ("ra_in1k", 75.766, 224),
    "hardcorenas_a": ("miil_green_in1k", 75.930, 224),
    "hardcorenas_b": ("miil_green_in1k", 76.536, 224),
    "tf_efficientnet_lite1": ("in1k", 76.644, 240),
    "hardcorenas_c": ("miil_green_in1k", 77.058, 224),
    "hgnetv2_b0": ("ssld_stage2_ft_in1k", 77.4, 224),
    "hardcorenas_d": ("miil_green_in1k", 77.440, 224),
    "tf_efficientnet_lite2": ("in1k", 77.464, 260),
    "hardcorenas_e": ("miil_green_in1k", 77.784, 224),
    "hardcorenas_f": ("miil_green_in1k", 78.098, 224),
    "levit_128": ("fb_dist_in1k", 78.490, 224),
    "efficientnet_b0": ("ra4_e3600_r224_in1k", 78.6, 224),
    "mobilenetv4_conv_medium": ("e500_r224_in1k", 79.1, 224),
    "levit_192": ("fb_dist_in1k", 79.838, 224),
}
# Operators whose multiply-accumulates count, as everywhere here; not those of norms and pooling.
_PRODUCTS = ("conv", "linear", "matmul", "addmm", "bmm", "einsum")
NAMES: tuple[str, ...] = tuple(_PUBLISHED)


class TimmNetwork(ForeignNetwork):
    """A checkpoint with its published accuracy; built by ``timm``."""

    def build(self) -> nn.Module:
        """The network with random weights, in evaluation mode."""
        import timm

        built: nn.Module = timm.create_model(self.model, pretrained=False)
        return built.eval()


def is_timm(name: str) -> bool:
    """True if the name of a reference asks for a timm model."""
    return name.startswith(PREFIX)


def timm_networks(name: str) -> list[TimmNetwork]:
    """The network a name stands for, or all of them for ``timm:all``.

    Raises:
        ForeignNetworkError: if timm is not installed, or there is no such network here.
    """
    model = canonical_name(name.removeprefix(PREFIX))
    if model != "all" and model not in _PUBLISHED:
        near = difflib.get_close_matches(model, _PUBLISHED, 1)
        guess = f"did you mean {PREFIX}{near[0]}? " if near else ""
        raise ForeignNetworkError(
            f"unknown reference {name!r}: {guess}known are {', '.join(_PUBLISHED)}; {PREFIX}all for all"
        )
    try:
        import timm  # noqa: F401  # said before anything is measured
    except ImportError:
        raise ForeignNetworkError(
            f"{name} needs timm: install it with: pip install 'mobilenet-nas[timm]'"
        ) from None
    return [_reference(each) for each in (NAMES if model == "all" else (model,))]


def _reference(model: str) -> TimmNetwork:
    tag, top1, side = _PUBLISHED[model]
    empty = TimmNetwork(PREFIX + model, tag, top1, 0, 0, side)
    built = empty.build()
    counted = operations_by_fvcore(built, side)
    macs = round(sum(counted[operator] for operator in _PRODUCTS))
    parameters = sum(each.numel() for each in built.parameters())
    return TimmNetwork(PREFIX + model, tag, top1, macs, parameters, side)
