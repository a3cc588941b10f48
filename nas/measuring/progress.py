"""Callbacks for progress bars while layers and networks are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProfileProgress:
    """Called while measuring.

    Attributes:
        prepared: (subjects ready, subjects in all).
        measured: (steady rounds, rounds wanted).
    """

    prepared: Callable[[int, int], None] = lambda done, total: None
    measured: Callable[[int, int], None] = lambda done, wanted: None
