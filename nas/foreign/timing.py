"""Foreign networks timed whole on this machine, in the same rounds as layers of its table."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nas.devices.device import ANCHOR, LocalTarget, Measurement
from nas.foreign.network import ForeignNetwork, ForeignNetworkError
from nas.graphs.onnx import INPUT_NAME
from nas.latency.sessions import link_keys, table_level
from nas.latency.table import LatencyTable
from nas.measuring.conditions import cpu_model, snapshot
from nas.measuring.models import OnnxRunner
from nas.measuring.rounds import Journal, Runner, Schedule, fastest_two_thirds, measure, steadied
from nas.runtimes.runtime import Runtime
from nas.runtimes.subject import RuntimeUnavailableError
from nas.settings import ROUNDS

_RUNTIMES = (("onnxruntime", "fp32"), ("torch", "fp32"), ("torch_compile", "fp32"))
_NO_EXPORTER = (
    "torchvision references in ONNX Runtime need onnxscript: pip install 'mobilenet-nas[torchvision]'"
)


def check_runnable(
    references: Sequence[ForeignNetwork], hardware: str, measured_here: bool, runtime: Runtime
) -> None:
    """Say before anything is measured what :func:`measure_end_to_end` could not do.

    Raises:
        ForeignNetworkError: if the hardware is not this machine, or the runtime cannot run them.
    """
    names = ", ".join(each.name for each in references)
    if references and not measured_here:
        raise ForeignNetworkError(
            f"{names} can be timed on this machine only, and hardware={hardware} is another: leave it out, "
            "and give a budget in milliseconds"
        )
    _check_runtime(references, runtime)
    if references and runtime.name == "onnxruntime" and importlib.util.find_spec("onnxscript") is None:
        raise RuntimeUnavailableError(_NO_EXPORTER)


def check_measurable(references: Sequence[ForeignNetwork], table: LatencyTable, runtime: Runtime) -> None:
    """Say before a search what :func:`measure_end_to_end` could not do after it.

    Raises:
        ForeignNetworkError: if the table is not of this machine, or the runtime cannot run them.
    """
    names = ", ".join(each.name for each in references)
    if references and not table.header.sessions:
        raise ForeignNetworkError(
            "torchvision references are measured beside a measured latency table, and this one is estimated; "
            f"measure it with: {table.profile_command}"
        )
    if references and table.header.device != cpu_model():
        raise ForeignNetworkError(
            f"torchvision references are measured on this machine only, and the latency table is of "
            f"{table.header.device}; leave {names} out"
        )
    _check_runtime(references, runtime)


def _check_runtime(references: Sequence[ForeignNetwork], runtime: Runtime) -> None:
    if references and (runtime.name, runtime.precision) not in _RUNTIMES:
        names = ", ".join(each.name for each in references)
        raise ForeignNetworkError(
            f"torchvision references run with runtime=onnxruntime (fp32) or torch, not {runtime.name} "
            f"({runtime.precision}); leave {names} out"
        )


def measure_end_to_end(
    references: Sequence[ForeignNetwork],
    table: LatencyTable,
    target: LocalTarget,
    journal: Path,
    rounds: int = ROUNDS,
) -> dict[str, float]:
    """Time whole networks on this machine, in the same rounds as some layers of the table.

    Args:
        references: what to time.
        table: measured on this machine with this runtime; gives the clock level, so
            that the result compares with latencies from the table.
        target: this machine, with ONNX Runtime (fp32) or PyTorch.
        journal: file that keeps the rounds; an interrupted measurement goes on from it.
        rounds: steady rounds wanted.

    Returns:
        Milliseconds for one image, by name.

    Raises:
        ForeignNetworkError: if the table was not measured, or the runtime cannot run them.
        MeasurementError: if the machine did not hold still.
    """
    runtime = target.runtime
    check_measurable(references, table, runtime)
    links = link_keys(table)
    loaders = {each.name: _loader(each, runtime) for each in references}
    layers = {str(key): key for key in links}
    names = [*loaders, *layers]

    def load(name: str) -> Runner:
        return loaders[name]() if name in loaders else runtime.runner(layers[name])

    identity = {
        "runtime": runtime.name,
        "version": runtime.version(),
        "threads": runtime.threads,
        "device": table.header.device,
    }
    kept = Journal(journal, names, identity)
    schedule = Schedule(rounds, target.seed, precise=list(loaders))
    with target.bound():
        steady = measure(load, runtime.runner(ANCHOR), kept, schedule, snapshot)
    for name, reason in kept.refused.items():
        raise ForeignNetworkError(f"{name} cannot be run with runtime={runtime.name}: {reason}")
    samples = steadied(steady)
    anchors = np.array([np.median(each.anchor_ms) for each in steady])
    linked = Measurement(
        tuple(links), samples[:, len(references) :], anchors, {"anchor_ms": float(np.median(anchors))}
    )
    level = table_level(table, linked)
    found = fastest_two_thirds(samples) * level
    return {each.name: float(latency_ms) for each, latency_ms in zip(references, found, strict=False)}


def _loader(reference: ForeignNetwork, runtime: Runtime) -> Callable[[], Runner]:
    """Makes what runs a reference once, anew each time it is called."""
    image = torch.randn(
        1, 3, reference.resolution, reference.resolution, generator=torch.Generator().manual_seed(0)
    )
    if runtime.name == "onnxruntime":
        exported = _onnx(reference.build(), image)
        return lambda: OnnxRunner(exported, runtime.threads)
    torch.set_num_threads(runtime.threads)

    def load() -> Runner:
        module = reference.build()
        call = torch.compile(module) if runtime.name == "torch_compile" else module

        def run() -> object:
            with torch.inference_mode():
                return call(image)

        return run

    return load


def _onnx(module: nn.Module, image: torch.Tensor) -> bytes:
    try:
        program = torch.onnx.export(
            module, (image,), dynamo=True, input_names=[INPUT_NAME], verbose=False, optimize=True
        )
    except ImportError as error:
        raise RuntimeUnavailableError(f"{_NO_EXPORTER} ({error})") from None
    assert program is not None
    exported: bytes = program.model_proto.SerializeToString()
    return exported
