"""Common to all trainings: errors, images a step, learning rate."""

from __future__ import annotations

import math

import torch

from nas.data import Split
from nas.training.processes import Processes
from search_spaces.errors import InputError

_MADE_BY_CPU = "can't allocate memory"


class TrainingError(InputError):
    """A training that cannot go on. The message says where it stopped and what is kept."""


def check_classes(split: Split, what: str, classes: int) -> None:
    """Refuse images of other classes than are to be learnt.

    Args:
        split: the images.
        what: has the classes, for the message.
        classes: that it has.

    Raises:
        InputError: if they are others, or there is nothing to learn.
    """
    if len(split.classes) < 2:
        raise InputError("the dataset has one class: there is nothing to learn")
    if len(split.classes) != classes:
        raise InputError(f"the {what} has {classes} classes, the dataset {len(split.classes)}")


def images_a_step(wanted: int, split: Split, processes: Processes) -> int:
    """Images per step, the same number for each process.

    Args:
        wanted: of all processes together.
        split: may have fewer.
        processes: that train together.

    Raises:
        InputError: if they are too few.
    """
    found = min(wanted, len(split.train)) // processes.count * processes.count
    if found < 2 * processes.count:
        raise InputError(
            f"{wanted} images per step are too few for {processes.count} processes: at least 2 for each"
        )
    return found


def first_difference(old: object, new: object) -> str:
    """The first setting in which two sections differ, e.g. `` (mixup 0.2, now 0.5)``; empty for no sections.

    Args:
        old: the section as it was, plain values.
        new: as it is now.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if (was := old.get(key)) != (now := new.get(key)):
                brief = not any(isinstance(each, dict | list) for each in (was, now))
                return f" ({key} {was}, now {now})" if brief else f" ({key})"
    return ""


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error is the lack of memory, of a GPU or of this machine."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or _MADE_BY_CPU in str(error)


def cosine_rate(peak: float, warmup_epochs: float, step: int, steps: int, per_epoch: int) -> float:
    """The learning rate of a step: linear warm-up, then half a cosine down to zero.

    Args:
        peak: the largest learning rate.
        warmup_epochs: in which it rises; at most half of the training.
        step: number of the step, from 0.
        steps: in all.
        per_epoch: steps of an epoch.
    """
    warmup = min(warmup_epochs * per_epoch, steps / 2)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
