"""ExecuTorch with XNNPACK, fp32. Its exporter takes seconds a layer."""

from __future__ import annotations

import warnings

import torch

from nas.measuring.rounds import Runner
from nas.runtimes.subject import Precision, Subject, build_module, input_shape

PACKAGE = EXTRA = "executorch"
PRECISIONS: tuple[Precision, ...] = ("fp32",)


def runner(subject: Subject, precision: Precision, threads: int) -> Runner:
    """A call that runs a layer or a network once.

    Args:
        subject: the layer or network.
        precision: ``fp32`` or ``int8``.
        threads: within an operator.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import portable_lib

    # The pool belongs to the process and has a thread for every core until told otherwise.
    if portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)
    image = torch.randn(input_shape(subject), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        # Its own use of what PyTorch is about to drop: several lines a layer.
        warnings.simplefilter("ignore", FutureWarning)
        exported = torch.export.export(build_module(subject), (image,))
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        program = lowered.to_executorch()
    buffer = program.buffer
    module = portable_lib._load_for_executorch_from_buffer(buffer)

    def run(_: bytes = buffer) -> object:
        # The module reads its weights from the buffer without owning it: this keeps it alive.
        return module.forward((image,))

    return run
