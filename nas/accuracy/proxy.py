"""Training-free scores of networks: cheap, honest about being no accuracies.

Rank correlation with the networks of Accel-NASBench is written down in ``results/accuracy.md``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nas.accuracy.source import Accuracy, AccuracyError
from nas.cost import cost
from nas.network import Network
from search_spaces.architecture import Architecture

ProxyName = Literal["naswot", "synflow", "macs"]
PROXIES: tuple[ProxyName, ...] = get_args(ProxyName)
# Normal noise that NASWOT looks at.
_IMAGES = 16


def naswot(network: nn.Module, images: Tensor) -> float:
    """A score of how differently an untrained network's activations separate a batch; higher is better.

    Log-determinant of the kernel that counts, for two images, the units that are on or off for both
    (Mellor et al. 2021, "Neural Architecture Search without Training", arXiv 2006.04647).

    Args:
        network: freshly initialised; its batch normalisations run on batch statistics.
        images: (N, 3, H, W), e.g. normal noise.
    """
    count = len(images)
    kernel = torch.zeros(count, count, dtype=torch.float64)

    def add(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        on = (inputs[0].detach().flatten(1) > 0).double()
        kernel.add_(on @ on.T + (1 - on) @ (1 - on).T)

    activations = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU)
    hooks = [
        each.register_forward_pre_hook(add) for each in network.modules() if isinstance(each, activations)
    ]
    try:
        with torch.no_grad():
            network.train()(images)
    finally:
        for hook in hooks:
            hook.remove()
    return float(torch.linalg.slogdet(kernel).logabsdet)


def synflow(network: nn.Module, resolution: int) -> float:
    """Logarithm of the summed path strengths of an untrained network; higher is better.

    All weights made positive, one image of ones, and the sum of weight times gradient (Tanaka et al.
    2020, arXiv 2006.05467; as a score of architectures Abdelfattah et al. 2021, arXiv 2101.08134).
    Batch normalisation is passed through, and so is ReLU6, which positive features would saturate.
    The network is changed: its weights become absolute.
    """
    network = network.eval().double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.ReLU6):
            module.forward = _pass  # type: ignore[method-assign]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    images = torch.ones(1, 3, resolution, resolution, dtype=torch.float64)
    weights = list(network.parameters())
    gradients = torch.autograd.grad(network(images).sum(), weights, allow_unused=True)
    total = sum(
        float((weight.detach() * gradient).abs().sum())
        for weight, gradient in zip(weights, gradients, strict=True)
        if gradient is not None
    )
    return math.log(total) if total > 0 else -math.inf


def _pass(input: Tensor) -> Tensor:  # noqa: A002
    return input


def proxy_score(architecture: Architecture, name: ProxyName, resolution: int, seed: int = 0) -> float:
    """The score of an architecture at initialisation; higher is better, the unit is arbitrary.

    Args:
        architecture: the network.
        name: ``naswot``, ``synflow`` or ``macs`` (their logarithm: the score to beat).
        resolution: pixels a side at which it is scored; smaller is faster.
        seed: of weights and noise.
    """
    if name == "macs":
        return math.log(cost(architecture).macs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(replace(architecture, resolution=resolution))
        if name == "synflow":
            return synflow(network, resolution)
        return naswot(network, torch.randn(_IMAGES, 3, resolution, resolution))


@dataclass(frozen=True, slots=True)
class ProxyAccuracy:
    """A score in place of an accuracy, marked ``proxy``: it ranks networks, it is no percentage.

    Attributes:
        name: one of :data:`PROXIES`.
        resolution: pixels a side at which networks are scored.

    Raises:
        AccuracyError: if there is no such score.
    """

    name: ProxyName
    resolution: int = 64

    def __post_init__(self) -> None:
        if self.name not in PROXIES:
            raise AccuracyError(f"unknown proxy {self.name!r}: known are {', '.join(PROXIES)}")

    @property
    def expensive(self) -> bool:
        """See :class:`nas.accuracy.source.SearchSource`."""
        return self.name != "macs"

    def accuracy(self, architecture: Architecture) -> Accuracy:
        """See :class:`nas.accuracy.source.AccuracyEstimator`.

        Raises:
            AccuracyError: if the score is no finite number.
        """
        score = proxy_score(architecture, self.name, self.resolution)
        if not math.isfinite(score):
            raise AccuracyError(f"the score {self.name} of {architecture.id} is {score}: it ranks nothing")
        return Accuracy(score, "proxy")
