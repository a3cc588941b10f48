"""Networks: an architecture as a trainable module, and foreign weights for it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.layers import LayerKey, layer_keys, operators
from search_spaces.ops import Add, Conv, Linear, Operators, Pool, SqueezeExcitation

# TensorFlow's MobileNets, V1 to V3: epsilon 0.001; momentum as MobileNetV3 (0.99 there is 0.01 here).
_NORM_EPSILON = 1e-3
_NORM_MOMENTUM = 0.01
_CLASSIFIER_DROPOUT = 0.2
# torchvision builds MobileNetV2 with PyTorch's own epsilon and MobileNetV3 with TensorFlow's.
TORCHVISION_V2_NORM_EPSILON = 1e-5
# So does timm MobileNetV4.
TIMM_V4_NORM_EPSILON = 1e-5

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hswish": nn.Hardswish,
    "swish": nn.SiLU,
    "hsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
}
# These have no in-place form.
_OUT_OF_PLACE = ("hsigmoid", "sigmoid")

Weights = tuple[NDArray[np.float32], NDArray[np.float32]]


class WeightsError(InputError):
    """Weights that do not belong to the network."""


class _PooledNorm(nn.BatchNorm2d):
    """Batch normalisation of pooled features, (N, C): found wherever batch normalisations are looked for."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002  # its name in torch
        if input.dim() != 2:
            raise ValueError(f"expected pooled features (N, C), not {tuple(input.shape)}")


class ChannelAttention(nn.Module):
    """Squeeze-and-excitation as a module, see :class:`search_spaces.ops.SqueezeExcitation`."""

    def __init__(self, operator: SqueezeExcitation) -> None:
        super().__init__()
        reduce, expand = operator.convs
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(*_modules(reduce), *_modules(expand))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), each channel scaled by its gate in [0, 1]."""
        gates: Tensor = self.gate(self.pool(features))
        return features * gates


class Layer(nn.Module):
    """A layer as a module: a feature map -> a feature map, or logits for a head.

    Attributes:
        operators: what it consists of.
        body: what computes it, but for the addition of a residual.
        drop_path: probability that training skips what is added to a residual, image by image.
    """

    def __init__(self, made_of: Operators) -> None:
        super().__init__()
        self.operators = made_of
        self._residual = any(isinstance(each, Add) for each in made_of)
        self.drop_path = 0.0
        modules: list[nn.Module] = []
        for number, operator in enumerate(made_of, start=1):
            if isinstance(operator, Linear) and number == len(made_of):
                modules.append(nn.Dropout(_CLASSIFIER_DROPOUT))
            if isinstance(operator, Conv):
                modules += _modules(operator)
            elif isinstance(operator, Pool):
                modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            elif isinstance(operator, SqueezeExcitation):
                modules.append(ChannelAttention(operator))
        self.body = nn.Sequential(*modules)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'), or (N, classes) for a head."""
        computed: Tensor = self.body(features)
        if self.drop_path and self.training and self._residual:
            from torchvision.ops import stochastic_depth  # not needed by whatever only measures

            computed = stochastic_depth(computed, self.drop_path, "row")
        return features + computed if self._residual else computed


def _modules(conv: Conv) -> list[nn.Module]:
    made: list[nn.Module]
    if isinstance(conv, Linear):
        made = [nn.Linear(conv.in_channels, conv.out_channels, bias=not conv.norm)]
    else:
        made = [
            nn.Conv2d(
                conv.in_channels,
                conv.out_channels,
                conv.kernel,
                conv.stride,
                conv.kernel // 2,
                groups=conv.groups,
                bias=not conv.norm,
            )
        ]
    if conv.norm:
        norm = _PooledNorm if isinstance(conv, Linear) else nn.BatchNorm2d
        made.append(norm(conv.out_channels, eps=_NORM_EPSILON, momentum=_NORM_MOMENTUM))
    if conv.activation in _OUT_OF_PLACE:
        made.append(_ACTIVATIONS[conv.activation]())
    elif conv.activation is not None:
        made.append(_ACTIVATIONS[conv.activation](inplace=True))
    return made


def build_layer(key: LayerKey) -> Layer:
    """The layer a key names: (N, *key.input_shape[1:]) -> a feature map, or logits for a head."""
    return Layer(operators(key))


class Network(nn.Module):
    """The network of an architecture: (N, 3, H, W) -> (N, classes) logits."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.layers = nn.Sequential(*(build_layer(key) for key in layer_keys(architecture)))
        self.apply(_initialise)

    def residual_layers(self) -> list[Layer]:
        """The layers that add to their input, in order."""
        return [layer for layer in layers_of(self) if any(isinstance(each, Add) for each in layer.operators)]

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of normalised images."""
        logits: Tensor = self.layers(images)
        return logits


def layers_of(module: Network | Layer) -> list[Layer]:
    """The layers of a network in order, or a layer alone."""
    if isinstance(module, Layer):
        return [module]
    return [layer for layer in module.layers if isinstance(layer, Layer)]


def folded_weights(module: nn.Module) -> Iterator[Weights]:
    """Weight and bias of each convolution and linear layer in order, normalisation folded in.

    The order is that of :func:`search_spaces.ops.convolutions`. Running statistics are folded, as every
    runtime does when it loads a trained network.
    """
    found = [each for each in module.modules() if isinstance(each, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]
    for number, product in enumerate(found):
        if isinstance(product, nn.BatchNorm2d):
            continue
        weight = _array(product.weight)
        bias = _array(product.bias) if product.bias is not None else np.zeros(len(weight), np.float32)
        following = found[number + 1] if number + 1 < len(found) else None
        if isinstance(following, nn.BatchNorm2d):
            assert following.running_mean is not None
            assert following.running_var is not None
            scale = _array(following.weight) / np.sqrt(
                _array(following.running_var) + np.float32(following.eps)
            )
            weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            bias = (bias - _array(following.running_mean)) * scale + _array(following.bias)
        yield weight, bias


def _array(tensor: Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = tensor.detach().cpu().numpy()
    return values


def load_torchvision_weights(
    network: Network, weights: Mapping[str, Tensor], norm_epsilon: float | None = None
) -> None:
    """Copy the weights of torchvision's MobileNet of the same table, or of timm's.

    Both networks register the same tensors in the same order, so they are matched by position and
    checked by shape; a partly fitting state is refused before anything is copied. A linear layer takes the
    weights of a 1x1 convolution of pooled features, as timm's MobileNetV4 has it.

    Args:
        network: the network to fill.
        weights: state dict of the torchvision or timm model.
        norm_epsilon: epsilon of its batch normalisations where it differs from ours
            (:data:`TORCHVISION_V2_NORM_EPSILON`, :data:`TIMM_V4_NORM_EPSILON`).

    Raises:
        WeightsError: naming the first tensor that does not fit.
    """
    own = network.state_dict()
    if len(own) != len(weights):
        raise WeightsError(f"the weights hold {len(weights)} tensors, the network has {len(own)}")
    found: dict[str, Tensor] = {}
    for (name, tensor), (foreign_name, foreign) in zip(own.items(), weights.items(), strict=True):
        pooled = tensor.ndim == 2 and foreign.shape == (*tensor.shape, 1, 1)
        found[name] = foreign.flatten(1) if pooled else foreign
        if tensor.shape != found[name].shape:
            raise WeightsError(
                f"{foreign_name} has shape {tuple(foreign.shape)}, but {name} needs {tuple(tensor.shape)}"
            )
    network.load_state_dict(found)
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
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def operations_by_fvcore(module: nn.Module, side: int) -> Mapping[str, float]:
    """Multiply-accumulates of a module by kind of operator, as fvcore counts them where one image passes.

    Args:
        module: takes images (1, 3, side, side).
        side: of the image, in pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it scripts a loss when it is imported, which torch deprecates
        from fvcore.nn import FlopCountAnalysis

        counting = FlopCountAnalysis(module, torch.zeros(1, 3, side, side))
        found: Mapping[str, float] = (
            counting.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
        )
    return found
