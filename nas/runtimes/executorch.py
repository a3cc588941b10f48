"""ExecuTorch with XNNPACK, fp32."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from nas.graphs.executorch import executorch_program, quiet
from nas.measuring.models import Values, random_image
from nas.measuring.rounds import Runner
from nas.runtimes.engine import Engine
from nas.runtimes.subject import Precision, Subject, borders, graph, input_shape


class ExecuTorchRunner:
    """A call that runs a program once on a fixed random image.

    Args:
        program: content of a ``.pte`` file.
        shape: of its input.
        threads: within an operator.
    """

    def __init__(self, program: bytes, shape: tuple[int, ...], threads: int) -> None:
        with quiet():
            from executorch.extension.pybindings import portable_lib

            # The pool belongs to the process and has a thread for every core until told otherwise.
            if portable_lib._threadpool_get_thread_count() != threads:
                portable_lib._unsafe_reset_threadpool(threads)
        # The module reads its weights from the program without owning it: this keeps it alive.
        self._program = program
        self._run = portable_lib._load_for_executorch_from_buffer(program).forward
        self.take(random_image(shape, "float32", 0))

    def __call__(self) -> None:
        """Run once."""
        self._found = self._run(self._inputs)

    def output(self) -> Values:
        """The output of the last run; feature maps of layers are in NHWC."""
        found: Values = self._found[0].numpy()
        return found

    def take(self, image: Values) -> None:
        """Run on another image, now and from now on: of the input's shape."""
        self._inputs = (torch.from_numpy(np.ascontiguousarray(image)),)
        self()


def _runner(subject: Subject, precision: Precision, threads: int) -> Runner:
    """A call that runs a layer or a network once; feature maps go from layer to layer in NHWC."""
    ends = borders(subject)
    weights: dict[str, NDArray[np.float32]] = {}
    model = graph(subject, precision, weights)
    program = executorch_program(model, weights, ends)
    batch, channels, *sides = input_shape(subject)
    shape = (batch, *sides, channels) if ends.input else (batch, channels, *sides)
    return ExecuTorchRunner(program, shape, threads)


# Its Python module copies inputs and outputs.
ENGINE = Engine("executorch", "executorch", None, _runner, ending=".pte")
