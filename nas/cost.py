"""Multiply-accumulates and parameters, counted from the table in microseconds.

MACs are those of convolutions and linear layers, as in the MobileNet papers; batch normalisation is
folded into its convolution at inference and counts as parameters only (scale and shift).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from search_spaces.architecture import Architecture
from search_spaces.layers import LayerKey, layer_keys, operators
from search_spaces.ops import convolutions, peak_values


@dataclass(frozen=True, slots=True)
class Cost:
    """What one forward pass of one image takes.

    Attributes:
        macs: multiply-accumulates.
        parameters: trainable parameters.
        peak_values: the most values of feature maps held at once; 4 bytes each in fp32, 1 in int8.
    """

    macs: int
    parameters: int
    peak_values: int = 0


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
