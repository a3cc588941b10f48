"""Networks of torchvision and timm by name."""

from __future__ import annotations

from collections.abc import Sequence

from nas.foreign.network import ForeignNetwork
from nas.foreign.timm import is_timm, timm_networks
from nas.foreign.torchvision import is_torchvision, torchvision_network


def is_foreign(name: str) -> bool:
    """True if a name is of a network that torchvision or timm builds."""
    return is_torchvision(name) or is_timm(name)


def foreign_networks(names: Sequence[str]) -> list[ForeignNetwork]:
    """Those of some names that torchvision or timm build.

    Raises:
        ForeignNetworkError: if there is no such network, or timm is not installed.
    """
    found: list[ForeignNetwork] = []
    for name in names:
        if is_torchvision(name):
            found.append(torchvision_network(name))
        elif is_timm(name):
            found += timm_networks(name)
    return found
