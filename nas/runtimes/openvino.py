"""OpenVINO on the CPU: fp32, and the int8 graphs of ONNX Runtime, whose QDQ nodes it understands."""

from __future__ import annotations

from nas.measuring.models import Model, OpenVinoRunner
from nas.measuring.rounds import Runner
from nas.runtimes.engine import Engine
from nas.runtimes.onnxruntime import stripped
from nas.runtimes.subject import Precision, Subject, graph


def _runner(subject: Subject, precision: Precision, threads: int) -> Runner:
    return OpenVinoRunner(graph(subject, precision).SerializeToString(), threads)


def _model(subject: Subject, precision: Precision) -> Model:
    return stripped(graph(subject, precision))


ENGINE = Engine(
    "openvino",
    "openvino",
    _model,
    _runner,
    ("fp32", "int8"),
    tasks=True,
    pays_at_borders=("fp32", "int8"),
)
