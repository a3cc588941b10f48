"""A small space, a made-up accuracy and a made-up latency for the tests of the search engine."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from nas.accuracy.source import Accuracy, AccuracyError
from nas.cost import cost
from nas.latency.table import Latency
from search_spaces.architecture import Architecture
from search_spaces.space import SearchSpace

# 5 choices in each of 4 layers and two resolutions, 1,250 settings. "skip" in a layer that keeps its
# shape is the identity, so some settings are the same network.
SMALL: dict[str, Any] = {
    "name": "small",
    "resolutions": [32, 64],
    "stems": [{"channels": 16}],
    "stages": [
        {
            "stride": 2,
            "width": width,
            "layers": 2,
            "candidates": [
                {"kind": "skip"},
                {"kernel": 3, "expansion": 3},
                {"kernel": 3, "expansion": 6},
                {"kernel": 5, "expansion": 6},
                {"kernel": 5, "expansion": 6, "se": True},
            ],
        }
        for width in (24, 48)
    ],
    "heads": [{"conv_channels": 128}],
    "classes": 10,
}


def small_space() -> SearchSpace:
    return SearchSpace.from_dict(SMALL)


class MadeUpLatency:
    """Milliseconds that grow with multiply-accumulates and with the number of blocks."""

    def latency(self, architecture: Architecture) -> Latency:
        blocks = sum(not block.is_identity for block in architecture.blocks)
        return Latency(cost(architecture).macs / 1e6 + 0.1 * blocks, "estimated")


class MadeUpAccuracy:
    """Percent that grow with multiply-accumulates, more with SE; counts how often each network was asked."""

    def __init__(self, refused: frozenset[str] = frozenset()) -> None:
        self.asked: Counter[Architecture] = Counter()
        self.refused = refused

    def accuracy(self, architecture: Architecture) -> Accuracy:
        self.asked[architecture] += 1
        if architecture.id in self.refused or "all" in self.refused:
            raise AccuracyError("no accuracy for this network")
        se = sum(block.se for block in architecture.blocks)
        return Accuracy(100 - 400 / math.log(cost(architecture).macs) + se, "predicted", 0.5)


def space_of_one() -> SearchSpace:
    """A space without any choice: one network, to be set beside the references."""
    stages = [{"stride": 2, "depths": [1], "widths": [24], "expansions": [3]}]
    plain = {"name": "one", "resolutions": [32], "stems": [{"channels": 16}], "stages": stages}
    return SearchSpace.from_dict({**plain, "heads": [{"conv_channels": 128}], "classes": 10})
