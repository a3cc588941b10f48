"""Networks: an architecture as a trainable module, and foreign weights for it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from nas.layers import build_layer, layer_keys
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError

# torchvision builds MobileNetV2 with PyTorch's own epsilon and MobileNetV3 with TensorFlow's.
TORCHVISION_V2_NORM_EPSILON = 1e-5


class WeightsError(InputError):
    """Weights that do not belong to the network."""


class Network(nn.Module):
    """The network of an architecture: (N, 3, H, W) -> (N, classes) logits."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.layers = nn.Sequential(*(build_layer(key) for key in layer_keys(architecture)))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of normalised images."""
        logits: Tensor = self.layers(images)
        return logits


def load_torchvision_weights(
    network: Network, weights: Mapping[str, Tensor], norm_epsilon: float | None = None
) -> None:
    """Copy the weights of torchvision's MobileNet of the same table.

    Both networks register the same tensors in the same order, so they are matched by position and
    checked by shape; a partly fitting state is refused before anything is copied.

    Args:
        network: the network to fill.
        weights: state dict of the torchvision model.
        norm_epsilon: epsilon of its batch normalisations where it differs from ours
            (:data:`TORCHVISION_V2_NORM_EPSILON` for MobileNetV2).

    Raises:
        WeightsError: naming the first tensor that does not fit.
    """
    own = network.state_dict()
    if len(own) != len(weights):
        raise WeightsError(f"the weights hold {len(weights)} tensors, the network has {len(own)}")
    for (name, tensor), (foreign_name, foreign) in zip(own.items(), weights.items(), strict=True):
        if tensor.shape != foreign.shape:
            raise WeightsError(
                f"{foreign_name} has shape {tuple(foreign.shape)}, but {name} needs {tuple(tensor.shape)}"
            )
    network.load_state_dict(dict(zip(own, weights.values(), strict=True)))
    if norm_epsilon is not None:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = norm_epsilon


def _initialise(module: nn.Module) -> None:
    # As torchvision's MobileNets: He et al. 2015 (arXiv 1502.01852), fan-out; small linear layers.
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.01)
        nn.init.zeros_(module.bias)
