"""A published network that is no block table of ours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search_spaces.errors import InputError

if TYPE_CHECKING:  # a report names these networks and builds none
    from torch import nn


class ForeignNetworkError(InputError):
    """A name that is no such network, or one that cannot be timed. The message says why."""


@dataclass(frozen=True, slots=True)
class ForeignNetwork(ABC):
    """A network as its library describes one published checkpoint.

    Weights are not downloaded: latency does not depend on their values.

    Attributes:
        name: with the prefix of its library, e.g. ``torchvision:resnet50``.
        weights: which weights the accuracy is of, e.g. ``IMAGENET1K_V2``.
        top1: ImageNet accuracy in percent.
        macs: multiply-accumulates at ``resolution``.
        parameters: trainable parameters.
        resolution: side of the input image in pixels at which the accuracy was measured.
    """

    name: str
    weights: str
    top1: float
    macs: int
    parameters: int
    resolution: int

    @property
    def model(self) -> str:
        """Name of the model within its library."""
        return self.name.split(":", 1)[1]

    @abstractmethod
    def build(self) -> nn.Module:
        """The network with random weights, in evaluation mode."""
