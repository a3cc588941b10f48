"""Any torchvision classifier as a reference, e.g. ``torchvision:resnet50``: its default weights."""

from __future__ import annotations

import difflib

from torch import nn
from torchvision import models

from nas.foreign.network import ForeignNetwork, ForeignNetworkError
from search_spaces.references import canonical_name

PREFIX = "torchvision:"
_METRICS = "ImageNet-1K"
_AUXILIARY = ("googlenet", "inception_v3")


class TorchvisionNetwork(ForeignNetwork):
    """A classifier as torchvision's metadata describe it; torchvision calls MACs operations."""

    def build(self) -> nn.Module:
        """The network with random weights, in evaluation mode."""
        # These two build auxiliary classifiers for training unless told not to.
        off = {"aux_logits": False, "init_weights": False} if self.model in _AUXILIARY else {}
        built: nn.Module = models.get_model(self.model, weights=None, **off)
        return built.eval()


def is_torchvision(name: str) -> bool:
    """True if the name of a reference asks for a torchvision model."""
    return name.startswith(PREFIX)


def torchvision_network(name: str) -> TorchvisionNetwork:
    """The classifier a name stands for.

    Args:
        name: ``torchvision:`` and the name of a model.

    Raises:
        ForeignNetworkError: if torchvision has no such classifier with published weights.
    """
    model = canonical_name(name.removeprefix(PREFIX))
    known = models.list_models(module=models)
    if model not in known:
        near = difflib.get_close_matches(model, known, 1)
        guess = f"did you mean {PREFIX}{near[0]}? " if near else ""
        raise ForeignNetworkError(
            f"unknown reference {name!r}: {guess}torchvision's classifiers are {', '.join(known)}"
        )
    weights = models.get_model_weights(model).DEFAULT
    metrics = weights.meta["_metrics"].get(_METRICS)
    if metrics is None:
        raise ForeignNetworkError(f"torchvision publishes no {_METRICS} accuracy of {model}")
    return TorchvisionNetwork(
        name=PREFIX + model,
        weights=weights.name,
        top1=float(metrics["acc@1"]),
        macs=round(weights.meta["_ops"] * 1e9),
        parameters=int(weights.meta["num_params"]),
        resolution=int(weights.transforms().crop_size[0]),
    )
