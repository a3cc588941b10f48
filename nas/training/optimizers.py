"""The groups of a network's weights that a training's optimiser treats apart, and what it keeps of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from search_spaces.gate import Gate


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, list[Tensor] | float]]:
    """Groups for an optimiser: weights decay; norms and biases do not, as in the MobileNet papers' code.

    Args:
        network: its parameters of more than one dimension are its weights.
        weight_decay: of these.
    """
    weights: list[Tensor] = [each for each in network.parameters() if each.ndim > 1]
    others: list[Tensor] = [each for each in network.parameters() if each.ndim <= 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


# What each optimiser keeps of a parameter; momentum only where it has any.
_KEPT: dict[type[torch.optim.Optimizer], frozenset[str]] = {
    torch.optim.AdamW: frozenset(("step", "exp_avg", "exp_avg_sq")),
    torch.optim.RMSprop: frozenset(("step", "square_avg")),
    torch.optim.SGD: frozenset(),
}
_MOMENTUM = "momentum_buffer"


def checked_state(
    gate: Gate, optimizer: torch.optim.Optimizer, name: str, parameter: Tensor, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state of a parameter from a checkpoint, as the optimizer goes on with it.

    Args:
        gate: names the checkpoint.
        optimizer: of the training.
        name: of the parameter.
        parameter: that it trains.
        state: by name; empty where the checkpoint has none.

    Raises:
        InputError: of the gate's kind, if it is no state of this parameter.
    """
    if state and state.keys() - {_MOMENTUM} != _KEPT[type(optimizer)]:
        gate.fail(f"keeps {', '.join(sorted(state))} of {name}, which is no state of its optimizer")
    for key, each in state.items():
        wanted = () if key == "step" else tuple(parameter.shape)
        if tuple(each.shape) != wanted or not each.is_floating_point():
            gate.fail(f"keeps {key} of {name} in the shape {tuple(each.shape)}, not {wanted}")
    return {
        key: each.clone() if key == "step" else each.clone().to(parameter.device)
        for key, each in state.items()
    }
