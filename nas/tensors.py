"""Files of tensors: read without trust, written in one step."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nas.saving import write_atomically
from search_spaces.gate import MEGABYTE, Gate

# Before the numbers in a file of an older torch: a magic number, versions, the machine, tensors, their order.
_PICKLES_IN_A_ROW = 5
# The largest classifier that torchvision has weights of, a teacher, takes 2,600 MB.
_MOST_BYTES = 3_000 * MEGABYTE
# No weight has more, and torch takes seconds to refuse many.
_MOST_DIMENSIONS = 8
# By which torch tells an archive, whatever lies behind.
_ARCHIVE = b"PK\x03\x04"


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
            wanted = [] if notes_alone else list(file.keys())
            for name in wanted:
                if (count := len(file.get_slice(name).get_shape())) > _MOST_DIMENSIONS:
                    gate.fail(f"holds a tensor of {count} dimensions in {name!r}")
            return {name: file.get_tensor(name) for name in wanted}, file.metadata() or {}
    except gate.error:
        raise
    except OSError as error:
        gate.unreadable(error.strerror or error)
    except (safetensors.SafetensorError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        gate.fail(f"holds no tensors: {error}")


def read_state_dict(path: Path, gate: Gate) -> dict[str, Tensor]:
    """The tensors of a file that ``torch.save`` wrote, all of finite numbers, and nothing else of it.

    Args:
        path: the file.
        gate: names it.

    Raises:
        InputError: of the gate's kind, if it cannot be read, is damaged, or holds anything but tensors.
    """
    with gate.opened(path, _MOST_BYTES) as file:
        _check_pickles(file, gate)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler says whatever its opcodes lead to
        gate.fail(f"holds no tensors: {type(error).__name__}")
    if not isinstance(found, dict):
        gate.fail("holds no tensors by name")
    tensors: dict[str, Tensor] = {}
    for name, each in found.items():
        if not isinstance(name, str) or not _is_plain(each):
            gate.fail(f"holds something else than tensors in {name!r}")
        if each.is_floating_point() and not bool(torch.isfinite(each).all()):
            gate.fail(f"holds NaN or infinity in {name!r}")
        tensors[name] = each
    return tensors


def _check_pickles(file: BinaryIO, gate: Gate) -> None:
    """Refuse an archive of kilobytes that unpacks to gigabytes, and words over which torch takes minutes.

    In what it says of a global that it does not know, it looks for patterns in a time that grows with the
    square of the global's name.
    """
    try:
        is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE
        file.seek(0)
        if is_archive:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                if (size := sum(each.file_size for each in entries)) > _MOST_BYTES:
                    gate.fail(f"is too large: {size / MEGABYTE:,.0f} MB unpacked")
                pickles: list[BinaryIO] = [
                    io.BytesIO(archive.read(each)) for each in entries if each.filename.endswith("data.pkl")
                ]
        else:
            pickles = [file] * _PICKLES_IN_A_ROW
        for pickled in pickles:
            if any(isinstance(each, str) and len(each) > 300 for _, each, _ in pickletools.genops(pickled)):
                gate.fail("holds a word of more than 300 characters")
    except gate.error:
        raise
    except Exception as error:  # of a damaged archive: among others of its compression
        gate.fail(f"holds no tensors: {type(error).__name__}")


def _is_plain(value: object) -> bool:
    """True of a tensor whose values are all there, each once."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


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
