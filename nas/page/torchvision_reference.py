"""Any torchvision classifier as a reference beside the family, e.g. ``torchvision:resnet50``.

    networks = [torchvision_reference("torchvision:resnet50")]
    latencies = measure_end_to_end(networks, table, runtime, journal, rounds=40)
    record(study, networks, latencies)             # nas.page.reading finds them there

Accuracy is what torchvision publishes with its default weights, which are not downloaded: latency does
not depend on their values. It stands beside the study's own accuracies, labelled ``published``, and never
enters the front.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import torch
from torch import nn
from torchvision import models

from nas.cost import cost
from nas.devices.device import ANCHOR, Measurement
from nas.latency.sessions import link_keys, table_level
from nas.latency.table import LatencyModel, LatencyTable
from nas.measuring.conditions import cpu_model, snapshot
from nas.measuring.models import OnnxRunner
from nas.measuring.rounds import (
    STATISTICS,
    Journal,
    Runner,
    Schedule,
    measure,
    steadied,
)
from nas.onnx_graph import INPUT_NAME
from nas.page.reading import PUBLISHED
from nas.runtimes.runtime import Runtime
from nas.runtimes.subject import RuntimeUnavailableError
from nas.settings import ROUNDS
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.references import canonical_name, published_top1

_RUNTIMES = (("onnxruntime", "fp32"), ("torch", "fp32"), ("torch_compile", "fp32"))
PREFIX = "torchvision:"
_METRICS = "ImageNet-1K"
_NO_EXPORTER = (
    "torchvision references in ONNX Runtime need onnxscript: pip install 'mobilenet-nas[torchvision]'"
)


class TorchvisionReferenceError(InputError):
    """A name that is no torchvision classifier, or one that cannot be measured. The message says why."""


@dataclass(frozen=True, slots=True)
class TorchvisionReference:
    """A classifier's default weights as torchvision's metadata describe them.

    Attributes:
        name: with the prefix, e.g. ``torchvision:resnet50``.
        weights: which weights the accuracy is of, e.g. ``IMAGENET1K_V2``.
        top1: ImageNet accuracy in percent.
        macs: multiply-accumulates at ``resolution``; torchvision calls them operations.
        parameters: trainable parameters.
        resolution: side of the input image in pixels at which the accuracy was measured.
    """

    name: str
    weights: str
    top1: float
    macs: int
    parameters: int
    resolution: int

    @property
    def model(self) -> str:
        """Name of the model within torchvision."""
        return self.name.removeprefix(PREFIX)

    def build(self) -> nn.Module:
        """The network with random weights, in evaluation mode."""
        built: nn.Module = models.get_model(self.model, weights=None, **_no_auxiliary(self.model))
        return built.eval()


def is_torchvision(name: str) -> bool:
    """True if the name of a reference asks for a torchvision model."""
    return name.startswith(PREFIX)


def torchvision_reference(name: str) -> TorchvisionReference:
    """The classifier a name stands for.

    Args:
        name: ``torchvision:`` and the name of a model.

    Raises:
        TorchvisionReferenceError: if torchvision has no such classifier with published weights.
    """
    model = canonical_name(name.removeprefix(PREFIX))
    known = models.list_models(module=models)
    if model not in known:
        near = difflib.get_close_matches(model, known, 1)
        guess = f"did you mean {PREFIX}{near[0]}? " if near else ""
        raise TorchvisionReferenceError(
            f"unknown reference {name!r}: {guess}torchvision's classifiers are {', '.join(known)}"
        )
    weights = models.get_model_weights(model).DEFAULT
    metrics = weights.meta["_metrics"].get(_METRICS)
    if metrics is None:
        raise TorchvisionReferenceError(f"torchvision publishes no {_METRICS} accuracy of {model}")
    return TorchvisionReference(
        name=PREFIX + model,
        weights=weights.name,
        top1=float(metrics["acc@1"]),
        macs=round(weights.meta["_ops"] * 1e9),
        parameters=int(weights.meta["num_params"]),
        resolution=int(weights.transforms().crop_size[0]),
    )


def check_runnable(
    references: Sequence[TorchvisionReference], hardware: str, measured_here: bool, runtime: Runtime
) -> None:
    """Say before anything is measured what :func:`measure_end_to_end` could not do.

    Raises:
        TorchvisionReferenceError: if the hardware is not this machine, or the runtime cannot run them.
    """
    names = ", ".join(each.name for each in references)
    if references and not measured_here:
        raise TorchvisionReferenceError(
            f"{names} can be timed on this machine only, and hardware={hardware} is another: leave it out, "
            "and give a budget in milliseconds"
        )
    _check_runtime(references, runtime)
    if references and runtime.name == "onnxruntime" and importlib.util.find_spec("onnxscript") is None:
        raise RuntimeUnavailableError(_NO_EXPORTER)


def check_measurable(
    references: Sequence[TorchvisionReference], table: LatencyTable, runtime: Runtime
) -> None:
    """Say before a search what :func:`measure_end_to_end` could not do after it.

    Raises:
        TorchvisionReferenceError: if the table is not of this machine, or the runtime cannot run them.
    """
    names = ", ".join(each.name for each in references)
    if references and not table.header.sessions:
        raise TorchvisionReferenceError(
            "torchvision references are measured beside a measured latency table, and this one is estimated; "
            f"measure it with: {table.profile_command}"
        )
    if references and table.header.device != cpu_model():
        raise TorchvisionReferenceError(
            f"torchvision references are measured on this machine only, and the latency table is of "
            f"{table.header.device}; leave {names} out"
        )
    _check_runtime(references, runtime)


def _check_runtime(references: Sequence[TorchvisionReference], runtime: Runtime) -> None:
    if references and (runtime.name, runtime.precision) not in _RUNTIMES:
        names = ", ".join(each.name for each in references)
        raise TorchvisionReferenceError(
            f"torchvision references run with runtime=onnxruntime (fp32) or torch, not {runtime.name} "
            f"({runtime.precision}); leave {names} out"
        )


def measure_end_to_end(
    references: Sequence[TorchvisionReference],
    table: LatencyTable,
    runtime: Runtime,
    journal: Path,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> dict[str, float]:
    """Time whole networks on this machine, in the same rounds as some layers of the table.

    Args:
        references: what to time.
        table: measured on this machine with this runtime; gives the statistic and the clock level, so
            that the result compares with latencies from the table.
        runtime: ONNX Runtime (fp32) or PyTorch.
        journal: file that keeps the rounds; an interrupted measurement goes on from it.
        rounds: steady rounds wanted.
        seed: of the shuffled order.

    Returns:
        Milliseconds for one image, by name.

    Raises:
        TorchvisionReferenceError: if the table was not measured, or the runtime cannot run them.
        MeasurementError: if the machine did not hold still.
    """
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
    schedule = Schedule(rounds, seed, precise=list(loaders))
    steady = measure(load, runtime.runner(ANCHOR), kept, schedule, snapshot)
    for name, reason in kept.refused.items():
        raise TorchvisionReferenceError(f"{name} cannot be run with runtime={runtime.name}: {reason}")
    samples = steadied(steady)
    anchors = np.array([np.median(each.anchor_ms) for each in steady])
    linked = Measurement(
        tuple(links), samples[:, len(references) :], anchors, {"anchor_ms": float(np.median(anchors))}
    )
    level = table_level(table, linked)
    found = STATISTICS[table.header.statistic](samples) * level
    return {each.name: float(latency_ms) for each, latency_ms in zip(references, found, strict=False)}


def record(
    study: optuna.Study, references: Sequence[TorchvisionReference], latencies_ms: Mapping[str, float]
) -> None:
    """Keep measured references in a study, where its reports find them; earlier ones are replaced."""
    study.set_user_attr(
        PUBLISHED,
        {
            each.name: {
                "top1": each.top1,
                "weights": each.weights,
                "latency_ms": latencies_ms[each.name],
                "latency_source": "measured",
                "macs": each.macs,
                "parameters": each.parameters,
                "resolution": each.resolution,
            }
            for each in references
        },
    )


def record_tables(study: optuna.Study, references: Mapping[str, Architecture], latency: LatencyModel) -> None:
    """Keep references of the family of which only the published accuracy is known; others stay.

    Args:
        study: where its reports find them.
        references: by name, each with a published accuracy at its resolution.
        latency: of the study.
    """
    found: dict[str, object] = dict(study.user_attrs.get(PUBLISHED) or {})
    for name, architecture in references.items():
        counted, known = cost(architecture), latency.latency(architecture)
        found[name] = {
            "top1": published_top1(name, architecture.resolution),
            "latency_ms": known.latency_ms,
            "latency_source": known.source,
            "macs": counted.macs,
            "parameters": counted.parameters,
            "resolution": architecture.resolution,
            "table": architecture.to_dict(),
        }
    study.set_user_attr(PUBLISHED, found)


def recorded(study: optuna.Study) -> dict[str, float]:
    """Latencies in milliseconds that :func:`record` kept, by name."""
    found = study.user_attrs.get(PUBLISHED)
    return {
        name: float(each["latency_ms"])
        for name, each in (found.items() if isinstance(found, dict) else ())
        if isinstance(each, dict)
        and isinstance(each.get("latency_ms"), float | int)
        and each["latency_ms"] > 0
    }


def _no_auxiliary(model: str) -> dict[str, bool]:
    # These two build auxiliary classifiers for training unless told not to.
    return {"aux_logits": False, "init_weights": False} if model in ("googlenet", "inception_v3") else {}


def _loader(reference: TorchvisionReference, runtime: Runtime) -> Callable[[], Runner]:
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
