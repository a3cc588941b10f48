"""Inference runtimes: how a layer or a network becomes something that can be timed.

The runtime belongs to the hardware. PyTorch eager is no proxy for a deployed model: Arm publishes
72.6 ms eager against 10.9 ms with ExecuTorch for MobileNetV2 on a Raspberry Pi 5.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Literal, get_args

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from nas.layers import LayerKey, build_layer
from nas.measuring.rounds import Runner, onnx_runner
from nas.network import Network
from nas.onnx_graph import onnx_model
from nas.quantize import quantize
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError

RuntimeName = Literal["onnxruntime", "executorch", "torch", "torch_compile"]
Precision = Literal["fp32", "int8"]

RUNTIMES: tuple[str, ...] = get_args(RuntimeName)
PRECISIONS: tuple[str, ...] = get_args(Precision)


class RuntimeUnavailableError(InputError):
    """A runtime that is not installed, or that cannot do what was asked. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime with its settings.

    Attributes:
        name: ``onnxruntime``, ``executorch`` (XNNPACK), ``torch`` (eager) or ``torch_compile``.
        precision: ``fp32``, or ``int8`` (static quantisation with QDQ, ONNX Runtime only).
        threads: threads within an operator.
    """

    name: RuntimeName = "onnxruntime"
    precision: Precision = "fp32"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.name not in RUNTIMES:
            raise RuntimeUnavailableError(f"unknown runtime {self.name!r}; known are {', '.join(RUNTIMES)}")
        if self.precision not in PRECISIONS:
            raise RuntimeUnavailableError(
                f"unknown precision {self.precision!r}; known are {', '.join(PRECISIONS)}"
            )
        if self.precision == "int8" and self.name != "onnxruntime":
            raise RuntimeUnavailableError(
                f"runtime {self.name} has no int8 here; use runtime=onnxruntime for int8, or precision fp32"
            )
        if type(self.threads) is not int or self.threads < 1:
            raise RuntimeUnavailableError(f"threads must be a positive integer, not {self.threads!r}")

    @property
    def package(self) -> str:
        """The Python package whose version is the runtime's."""
        return "torch" if self.name == "torch_compile" else self.name

    def version(self) -> str:
        """Version of the installed runtime.

        Raises:
            RuntimeUnavailableError: with the command that installs it.
        """
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            raise RuntimeUnavailableError(
                f"runtime {self.name} is not installed; install it with: "
                f"pip install 'mobilenet-nas[{self.package}]'"
            ) from None

    def runner(self, subject: LayerKey | Architecture) -> Runner:
        """A call that runs a layer or a whole network once.

        Raises:
            RuntimeUnavailableError: if the runtime is not installed.
        """
        self.version()
        prepare: dict[str, Callable[[LayerKey | Architecture, Runtime], Runner]] = {
            "onnxruntime": _prepare_onnxruntime,
            "executorch": _prepare_executorch,
            "torch": _prepare_torch,
            "torch_compile": _prepare_torch,
        }
        return prepare[self.name](subject, self)


def input_shape(subject: LayerKey | Architecture) -> tuple[int, int, int, int]:
    """(1, C, H, W) of what a layer or a network takes."""
    if isinstance(subject, LayerKey):
        return subject.input_shape
    return (1, 3, subject.resolution, subject.resolution)


def build_module(subject: LayerKey | Architecture) -> nn.Module:
    """The module of a layer or a network, in evaluation mode."""
    module = build_layer(subject) if isinstance(subject, LayerKey) else Network(subject)
    return module.eval()


def graph(
    subject: LayerKey | Architecture,
    precision: Precision = "fp32",
    external: dict[str, NDArray[np.float32]] | None = None,
) -> onnx.ModelProto:
    """The ONNX graph of a layer or network with random weights, as it is timed.

    Args:
        subject: the layer or network.
        precision: ``fp32``, or ``int8`` with nominal ranges: latency does not depend on them.
        external: see :func:`nas.onnx_graph.onnx_model`; fp32 only.
    """
    with torch.device("meta"):
        module = build_module(subject)
    if precision == "fp32":
        return onnx_model(module, input_shape(subject), external=external)
    return quantize(onnx_model(module, input_shape(subject)))


def _prepare_onnxruntime(subject: LayerKey | Architecture, runtime: Runtime) -> Runner:
    weights: dict[str, NDArray[np.float32]] = {}
    model = graph(subject, runtime.precision, weights)
    return onnx_runner(model.SerializeToString(), runtime.threads, weights=weights)


def _prepare_torch(subject: LayerKey | Architecture, runtime: Runtime) -> Runner:
    torch.set_num_threads(runtime.threads)
    module: Callable[[torch.Tensor], torch.Tensor] = build_module(subject)
    if runtime.name == "torch_compile":
        if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
            raise RuntimeUnavailableError(
                "runtime torch_compile needs a C++ compiler: install one (sudo apt install g++), or use "
                "runtime=torch"
            )
        module = torch.compile(_with_code_of_its_own(module), dynamic=False)
    image = torch.randn(input_shape(subject), generator=torch.Generator().manual_seed(0))

    def run() -> object:
        with torch.inference_mode():
            return module(image)

    return run


def _with_code_of_its_own(module: Callable[[torch.Tensor], torch.Tensor]) -> FunctionType:
    """A call of the module that shares no compiled code with others.

    torch.compile keeps what it compiled by code object, eight variants of each; all layers share the code
    of ``nn.Sequential``, and from the ninth on would silently run eagerly.
    """

    def call(image: torch.Tensor) -> torch.Tensor:
        return module(image)

    return FunctionType(call.__code__.replace(), call.__globals__, "call", None, call.__closure__)


def _prepare_executorch(subject: LayerKey | Architecture, runtime: Runtime) -> Runner:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import portable_lib

    # The pool belongs to the process and has a thread for every core until told otherwise.
    if portable_lib._threadpool_get_thread_count() != runtime.threads:
        portable_lib._unsafe_reset_threadpool(runtime.threads)
    image = torch.randn(input_shape(subject), generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(build_module(subject), (image,))
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    buffer = program.buffer
    module = portable_lib._load_for_executorch_from_buffer(buffer)

    def run(_: bytes = buffer) -> object:
        # The module reads its weights from the buffer without owning it: this keeps it alive.
        return module.forward((image,))

    return run
