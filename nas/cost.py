"""Multiply-accumulates and parameters, counted from the table in microseconds.

MACs are those of convolutions and linear layers, as in the MobileNet papers; batch normalisation is
folded into its convolution at inference and counts as parameters only (scale and shift).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from search_spaces.architecture import Architecture
from search_spaces.layers import LayerKey, layer_keys, operators
from search_spaces.ops import convolutions, peak_values


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one forward pass of one image.

    Attributes:
        macs: multiply-accumulates.
        parameters: trainable parameters.
        peak_values: the most values of feature maps held at once; 4 bytes each in fp32, 1 in int8.
    """

    macs: int
    parameters: int
    peak_values: int = 0


# Bytes of a weight or of a value of a feature map, by precision.
BYTES_PER_VALUE = {"fp32": 4, "int8": 1}


@dataclass(frozen=True, slots=True)
class Limits:
    """The most a network may cost, besides time; infinite where there is no limit.

    Attributes:
        parameters: trainable parameters.
        macs: multiply-accumulates.
        model_size_mb: megabytes of weights.
        peak_memory_mb: megabytes of feature maps held at once.
        bytes_per_value: of weights and feature maps, see :data:`BYTES_PER_VALUE`.
    """

    parameters: float = math.inf
    macs: float = math.inf
    model_size_mb: float = math.inf
    peak_memory_mb: float = math.inf
    bytes_per_value: int = 4

    @property
    def any(self) -> bool:
        """True if there is a limit at all."""
        return math.isfinite(min(self.parameters, self.macs, self.model_size_mb, self.peak_memory_mb))

    @property
    def peak_values(self) -> float:
        """The peak of memory as a number of values."""
        return self.peak_memory_mb * 1e6 / self.bytes_per_value

    @property
    def all_parameters(self) -> float:
        """The parameters that both limits on them leave."""
        return min(self.parameters, self.model_size_mb * 1e6 / self.bytes_per_value)

    def excess(self, cost: Cost) -> float:
        """The factor by which the worst limit is exceeded; at most 1 for what is allowed."""
        return max(
            cost.parameters / self.all_parameters, cost.macs / self.macs, cost.peak_values / self.peak_values
        )


@lru_cache(maxsize=200_000)
def layer_cost(key: LayerKey) -> Cost:
    """MACs, parameters and peak memory of one layer."""
    made_of = operators(key)
    parts = list(convolutions(made_of))
    return Cost(
        sum(part.macs for part in parts), sum(part.parameters for part in parts), peak_values(made_of)
    )


@lru_cache(maxsize=10_000)
def cost(architecture: Architecture) -> Cost:
    """MACs, parameters and peak memory of a network."""
    parts = [layer_cost(key) for key in layer_keys(architecture)]
    return Cost(
        sum(part.macs for part in parts),
        sum(part.parameters for part in parts),
        max(part.peak_values for part in parts),
    )
