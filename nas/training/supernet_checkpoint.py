"""Checkpoints of a supernet: tensors in safetensors, everything else as JSON in its notes; no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nas.tensors import read_tensors, write_tensors
from nas.training.supernet import Supernet
from search_spaces.errors import InputError
from search_spaces.gate import Gate
from search_spaces.space import SearchSpace

_NOTE = "supernet"
_VERSION = 1
_SHARED = "shared/"
_FIELDS = ("version", "space", "classes", "made", "epoch", "batch", "epochs", "curve", "partial")


class CheckpointError(InputError):
    """A file that is no checkpoint of the supernet that is wanted. The message names the file."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A supernet in the middle or at the end of its training.

    Attributes:
        space: whose members it holds, resolutions and classes of its images included.
        classes: names of the classes.
        made: how: plain settings of images and recipe.
        epoch: epochs that are complete.
        batch: batches of the next one that are done.
        epochs: epochs wanted.
        curve: mean losses of each complete epoch: of the largest, the smallest and random members.
        partial: sums of these losses over the batches done of the next epoch.
        weights: the shared tensors.
        optimizer: state of the optimizer by tensor, ``NAME/exp_avg`` for instance; empty at the end.
    """

    space: SearchSpace
    classes: tuple[str, ...]
    made: Mapping[str, object]
    epoch: int
    batch: int
    epochs: int
    curve: tuple[tuple[float, ...], ...]
    partial: tuple[float, ...]
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]

    @property
    def is_finished(self) -> bool:
        """True if it was trained to the end."""
        return self.epoch >= self.epochs

    def supernet(self) -> Supernet:
        """The supernet with its weights."""
        supernet = Supernet(self.space)
        supernet.shared.load_state_dict(dict(self.weights))
        return supernet


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        SaveError: if it cannot be written; what was there before still is.
    """
    state = {
        "version": _VERSION,
        "space": checkpoint.space.to_dict(),
        "classes": list(checkpoint.classes),
        "made": dict(checkpoint.made),
        "epoch": checkpoint.epoch,
        "batch": checkpoint.batch,
        "epochs": checkpoint.epochs,
        "curve": [list(each) for each in checkpoint.curve],
        "partial": list(checkpoint.partial),
    }
    tensors = {_SHARED + name: each for name, each in checkpoint.weights.items()}
    tensors |= checkpoint.optimizer
    write_tensors(path, tensors, {_NOTE: json.dumps(state)})


def read(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing in it is trusted, nothing is unpickled.

    Raises:
        CheckpointError: if it cannot be read, is damaged, or no checkpoint of a supernet.
    """
    gate = Gate(f"the supernet {path}", CheckpointError, "python -m nas.supernet trains one")
    tensors, notes = read_tensors(path, gate)
    if _NOTE not in notes:
        gate.fail("holds tensors, but they are no supernet's")
    with gate.reading():
        state = gate.fields("state", gate.json(notes[_NOTE]), _FIELDS)
        if state["version"] != _VERSION:
            gate.fail(f"has version {state['version']!r}, this program reads {_VERSION}")
        space = SearchSpace.from_dict(state["space"])
        classes = tuple(gate.string("class", each) for each in gate.sequence(state["classes"], "classes"))
        if len(classes) != space.classes:
            gate.fail(f"names {len(classes)} classes, its space has {space.classes}")
        curve = tuple(_losses(gate, each) for each in gate.sequence(state["curve"], "curve"))
        found = Checkpoint(
            space=space,
            classes=classes,
            made=gate.mapping(state["made"], "made"),
            epoch=gate.integer("epoch", state["epoch"]),
            batch=gate.integer("batch", state["batch"]),
            epochs=gate.integer("epochs", state["epochs"], 1),
            curve=curve,
            partial=_losses(gate, state["partial"]),
            weights={
                name.removeprefix(_SHARED): each for name, each in tensors.items() if name.startswith(_SHARED)
            },
            optimizer={name: each for name, each in tensors.items() if not name.startswith(_SHARED)},
        )
        _check_shapes(gate, found)
    return found


def _losses(gate: Gate, data: object) -> tuple[float, ...]:
    return tuple(gate.number("loss", each) for each in gate.sequence(data, "losses", 3))


def _check_shapes(gate: Gate, checkpoint: Checkpoint) -> None:
    # Of no memory: a few bytes name a space whose supernet takes gigabytes.
    with torch.device("meta"):
        wanted = {name: each.shape for name, each in Supernet(checkpoint.space).shared.items()}
    for name, shape in wanted.items():
        if name not in checkpoint.weights:
            gate.fail(f"lacks {name}")
        if checkpoint.weights[name].shape != shape:
            gate.fail(f"has {name} of shape {tuple(checkpoint.weights[name].shape)}, not {tuple(shape)}")
    for name in checkpoint.weights:
        if name not in wanted:
            gate.fail(f"has {name!r}, which its space has no use for")


def check_fits(path: Path, checkpoint: Checkpoint, space: SearchSpace) -> None:
    """Refuse a supernet of another space or of other classes.

    Args:
        path: of the checkpoint, for the message.
        checkpoint: what it holds.
        space: that is asked for.

    Raises:
        CheckpointError: naming the first difference.
    """
    if checkpoint.space.classes != space.classes:
        raise CheckpointError(
            f"the supernet {path} was trained for {checkpoint.space.classes} classes, "
            f"here are {space.classes}: choose the dataset it was trained on, or train another one"
        )
    theirs, ours = (
        {name: each for name, each in found.to_dict().items() if name != "name"}
        for found in (checkpoint.space, space)
    )
    for name, value in ours.items():
        if theirs[name] != value:
            raise CheckpointError(
                f"the supernet {path} was trained for another search space ({checkpoint.space.name}: "
                f"{name} differ): choose that one, or train another one with python -m nas.supernet"
            )
