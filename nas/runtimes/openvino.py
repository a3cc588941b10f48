"""OpenVINO on the CPU: fp32, and the int8 graphs of ONNX Runtime, whose QDQ nodes it understands."""

from __future__ import annotations

from nas.measuring.models import runner_of
from nas.measuring.rounds import Runner
from nas.runtimes.onnxruntime import stripped
from nas.runtimes.subject import Model, Precision, Subject, graph

PACKAGE = EXTRA = "openvino"
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")


def runner(subject: Subject, precision: Precision, threads: int) -> Runner:
    """A call that runs a layer or a network once.

    Args:
        subject: the layer or network.
        precision: ``fp32`` or ``int8``.
        threads: within an operator.
    """
    return runner_of("openvino", graph(subject, precision).SerializeToString(), {}, threads)


def model(subject: Subject, precision: Precision) -> Model:
    """A graph without the weights of its convolutions and linear layers, and those."""
    return stripped(graph(subject, precision))
