"""The groups of a network's weights that a training's optimiser treats apart."""

from __future__ import annotations

from torch import Tensor, nn


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, list[Tensor] | float]]:
    """Groups for an optimiser: weights decay; norms and biases do not, as in the MobileNet papers' code.

    Args:
        network: its parameters of more than one dimension are its weights.
        weight_decay: of these.
    """
    weights: list[Tensor] = [each for each in network.parameters() if each.ndim > 1]
    others: list[Tensor] = [each for each in network.parameters() if each.ndim <= 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
