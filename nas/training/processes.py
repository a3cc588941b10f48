"""Processes that train one network together, as ``torchrun`` starts them; or this one alone.

    torchrun --nproc-per-node 4 -m nas.supernet dataset=imagenet ...

They are told of each other by environment variables. With CUDA each takes a GPU of its own and they talk
through NCCL, without through gloo.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from search_spaces.errors import InputError


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: number of this process.
        count: number of processes.
        device: that this process trains on.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True if this one writes files and prints."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """The part of a batch that is this process's."""
        return batch[self.rank :: self.count]

    def average(self, tensors: list[Tensor]) -> None:
        """Put in each tensor the mean of all processes; shapes must be the same in all."""
        if self.count == 1 or not tensors:
            return
        joined = torch.cat([each.flatten() for each in tensors])
        distributed.all_reduce(joined)
        joined /= self.count
        start = 0
        for tensor in tensors:
            tensor.copy_(joined[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """The processes that ``torchrun`` started, or this one alone.

    Args:
        device: ``cpu``, ``cuda`` or ``auto``.

    Raises:
        InputError: if there is no such device.
    """
    cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        raise InputError(f"device={device}, but torch sees no CUDA device: use cpu")
    count, local = _told("WORLD_SIZE", 1), _told("LOCAL_RANK", 0)
    if count == 1:
        yield Processes(0, 1, torch.device("cuda" if cuda else "cpu"))
        return
    if cuda:
        if local >= torch.cuda.device_count():
            raise InputError(
                f"{local + 1} processes on this machine, but {torch.cuda.device_count()} GPUs: "
                "start fewer with --nproc-per-node"
            )
        torch.cuda.set_device(local)
    try:
        distributed.init_process_group("nccl" if cuda else "gloo")
    except (ValueError, OSError, RuntimeError) as error:
        raise InputError(
            f"WORLD_SIZE={count}, but the processes do not find each other ({error}): start them with "
            "torchrun, or unset WORLD_SIZE"
        ) from None
    try:
        yield Processes(
            distributed.get_rank(), count, torch.device("cuda", local) if cuda else torch.device("cpu")
        )
    finally:
        distributed.destroy_process_group()


def _told(name: str, default: int) -> int:
    """A number that ``torchrun`` tells a process.

    Raises:
        InputError: if it is none.
    """
    text = os.environ.get(name, str(default))
    if not re.fullmatch(r"\d{1,6}", text) or int(text) < default:
        raise InputError(
            f"the environment variable {name}={text!r} is not what torchrun sets: start with torchrun, or "
            f"unset {name}"
        )
    return int(text)
