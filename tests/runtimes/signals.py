"""Networks through which images get, although nothing was trained."""

import torch


def let_signals_through(module: torch.nn.Module) -> None:
    """Weights and statistics that a batch of images gets through, as through a trained network."""
    for each in module.modules():
        if isinstance(each, torch.nn.BatchNorm2d):
            each.momentum = 1.0
        elif isinstance(each, torch.nn.Linear):
            torch.nn.init.normal_(each.weight, 0.0, each.in_features**-0.5)
