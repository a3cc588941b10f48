"""Under what conditions a machine measures: processor, governor, clock, temperature, load, packages.

Standard library only: this file also runs on boards, inside the portable kit. What a system does not
offer is None, never a guess.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# What a board needs besides numpy, by runtime, as pip calls it.
PACKAGES = {
    "onnxruntime": "onnxruntime",
    "litert": "ai-edge-litert",
    "litert_split": "ai-edge-litert",
    "openvino": "openvino",
    "ncnn": "ncnn",
}
_CPU_FOLDER = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_THERMAL_FOLDER = Path("/sys/class/thermal")


def cpu_model() -> str:
    """Name of the processor (or of the board, where the processor has no name of its own)."""
    board = _read(Path("/proc/device-tree/model"))
    if board:
        return board.strip("\0")
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def describe() -> dict[str, object]:
    """The conditions that stay while measuring: machine, system, cores this process may use."""
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "cpu": cpu_model(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "affinity": affinity,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "memory_mb": _memory_mb("MemTotal"),
        "governor": (_read(_CPU_FOLDER / "scaling_governor") or "").strip() or None,
    }


def snapshot() -> dict[str, float | None]:
    """The conditions that may change from round to round: clock, temperature, load, free memory."""
    frequency = _number(_CPU_FOLDER / "scaling_cur_freq")
    temperature = _number(_THERMAL_FOLDER / "thermal_zone0" / "temp")
    throttles = _number(Path("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"))
    return {
        "frequency_mhz": frequency / 1000 if frequency is not None else None,
        "temperature_c": temperature / 1000 if temperature is not None else None,
        "throttle_count": throttles,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "free_memory_mb": _memory_mb("MemAvailable"),
    }


def boot_id() -> str | None:
    """An id of this running machine, other than that of a machine with a copy of its disk."""
    return (_read(Path("/proc/sys/kernel/random/boot_id")) or "").strip() or None


def usable_cores() -> int:
    """Cores that this process may use: what exists, less affinity and the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = (_read(Path("/sys/fs/cgroup/cpu.max")) or "max 1").split()[:2]
    if quota == "max":
        quota = (_read(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")) or "-1").strip()
        period = (_read(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")) or "1").strip()
    if int(quota) > 0:
        cores = min(cores, max(1, math.floor(int(quota) / int(period) + 0.01)))
    return cores


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _number(path: Path) -> float | None:
    text = _read(path)
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _memory_mb(name: str) -> float | None:
    found = re.search(rf"^{name}:\s*(\d+) kB", _read(Path("/proc/meminfo")) or "", re.MULTILINE)
    if found is None:
        return None
    limit = (_read(Path("/sys/fs/cgroup/memory.max")) or "max").strip()
    if limit == "max":
        return int(found[1]) // 1024
    # A container has what its control group leaves, whatever the machine has.
    used = 0.0 if name == "MemTotal" else _number(Path("/sys/fs/cgroup/memory.current")) or 0.0
    return min(int(found[1]) // 1024, max(0, int(limit) - int(used)) // 2**20)


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Installed version of each package, None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


class AffinityError(RuntimeError):
    """Cores that this machine does not have. The message names those it has."""


@contextlib.contextmanager
def affine_to(cores: Sequence[int]) -> Iterator[None]:
    """Run on these cores alone meanwhile, with all threads; on all cores where none are named.

    Some runtimes keep their threads from one model to the next (ncnn, ExecuTorch, PyTorch), and OpenVINO the
    cores it found at its first use: nothing should be loaded before.

    Args:
        cores: their numbers.

    Raises:
        AffinityError: see :func:`check_cores`.
    """
    if not cores:
        yield
        return
    check_cores(cores)
    before = os.sched_getaffinity(0)
    _bind_threads(set(cores))
    try:
        yield
    finally:
        _bind_threads(before)


def check_cores(cores: Sequence[int]) -> None:
    """Refuse cores to measure on that cannot be had.

    Args:
        cores: their numbers.

    Raises:
        AffinityError: if a core does not exist, or the system cannot do this.
    """
    if cores and not hasattr(os, "sched_setaffinity"):
        raise AffinityError("hardware.affinity: this system cannot bind a process to cores")
    if not set(cores) <= (usable := os.sched_getaffinity(0)):
        raise AffinityError(
            f"hardware.affinity={list(cores)}: this machine lets the process use cores {sorted(usable)}"
        )


def _bind_threads(cores: Iterable[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), cores)
