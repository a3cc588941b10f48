"""Some of many, evenly spread from the first to the last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")


def evenly_spread(items: Sequence[_T], count: int) -> list[_T]:
    """At most so many items of an ordered sequence, its ends among them where there are two and more.

    Args:
        items: in their order.
        count: how many are wanted.
    """
    positions = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[position] for position in positions]
