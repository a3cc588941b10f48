"""PyTorch, eager and compiled, for reference only: it is no proxy for a deployed network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType

import torch

from nas.measuring.rounds import Runner
from nas.runtimes.engine import Engine
from nas.runtimes.subject import Precision, RuntimeUnavailableError, Subject, build_module, input_shape


def _eager_runner(subject: Subject, precision: Precision, threads: int) -> Runner:
    return _runner(build_module(subject), subject, threads)


def _compiled_runner(subject: Subject, precision: Precision, threads: int) -> Runner:
    """A call that runs a layer or a network once, compiled.

    Raises:
        RuntimeUnavailableError: without a C++ compiler.
    """
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise RuntimeUnavailableError(
            "runtime torch_compile needs a C++ compiler: install one (sudo apt install g++), or use "
            "runtime=torch"
        )
    module = torch.compile(_with_code_of_its_own(build_module(subject)), dynamic=False)
    return _runner(module, subject, threads)


def _runner(module: Callable[[torch.Tensor], torch.Tensor], subject: Subject, threads: int) -> Runner:
    torch.set_num_threads(threads)
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


ENGINE = Engine("torch", "torch", None, _eager_runner, deploys=False)
COMPILED = replace(ENGINE, name="torch_compile", runner=_compiled_runner)
