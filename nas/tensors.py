"""Files of tensors: read without trust, written in one step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nas.saving import write_atomically
from search_spaces.gate import MEGABYTE, Gate

_MOST_BYTES = 2_000 * MEGABYTE


def read_tensors(path: Path, gate: Gate) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, all of finite numbers, and its notes.

    Raises:
        InputError: of the gate's kind, if the file cannot be read, is damaged or holds NaN or infinity.
    """
    tensors, notes = _read(path, gate)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            gate.fail(f"holds NaN or infinity in {name!r}")
    return tensors, notes


def read_notes(path: Path, gate: Gate) -> dict[str, str]:
    """The notes of a safetensors file alone.

    Raises:
        InputError: of the gate's kind, if the file cannot be read or is damaged.
    """
    return _read(path, gate, notes_alone=True)[1]


def _read(path: Path, gate: Gate, notes_alone: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    with gate.opened(path, _MOST_BYTES):
        pass
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            wanted = [] if notes_alone else file.keys()
            return {name: file.get_tensor(name) for name in wanted}, file.metadata() or {}
    except OSError as error:
        gate.unreadable(error.strerror or error)
    except (safetensors.SafetensorError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        gate.fail(f"holds no tensors: {error}")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        path: the file.
        tensors: by name.
        notes: texts kept beside them, by name.

    Raises:
        SaveError: if it cannot be written.
    """
    content = {name: each.detach().cpu().contiguous() for name, each in tensors.items()}
    write_atomically(path, safetensors.torch.save(content, dict(notes or {})))
