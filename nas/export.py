"""``python -m nas.export``: an architecture as an ONNX or LiteRT file, the same graph that was timed."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING

from nas import data
from nas.accuracy.train import CALIBRATION_IMAGES, train
from nas.assembly import dataset_settings, recipe_of
from nas.command import command
from nas.console import print_summary
from nas.cost import cost
from nas.litert_graph import litert_model
from nas.network import Network, WeightsError
from nas.onnx_graph import onnx_model
from nas.quantize import activation_ranges, quantize
from nas.runtimes.runtime import Runtime, RuntimeName
from nas.runtimes.subject import Precision
from nas.saving import check_output, write_atomically
from nas.settings import DatasetConfig, TrainConfig, plain
from nas.shell import shell_line
from nas.tensors import read_tensors, write_tensors
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.gate import Gate
from search_spaces.references import UnknownReferenceError, reference

_ENDINGS = {"onnx": ".onnx", "litert": ".tflite", "litert_split": ".tflite"}


@dataclass
class ExportSettings:
    """What to export.

    Attributes:
        architecture: a YAML file of a study's folder, or the name of a reference.
        output: the file; null: beside the YAML, or in the current folder.
        weights: safetensors file of trained weights; null: random weights, good for timing only.
        train: train on the dataset first, with the settings of accuracy=train.
        precision: fp32, or int8 quantised with the dataset's training images.
        format: onnx, litert, or litert_split (int8 with hard swish in operators that XNNPACK takes).
        overwrite: replace files that are there already.
        resolution: of a reference; null: 224.
        classes: of a reference; null: 1000.
    """

    architecture: str = MISSING
    output: str | None = None
    weights: str | None = None
    train: bool = False
    precision: str = "fp32"
    format: str = "onnx"
    overwrite: bool = False
    resolution: int | None = None
    classes: int | None = None


@dataclass
class ExportConfig:
    """Everything ``python -m nas.export`` can be told."""

    accuracy: Any = None
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    export: ExportSettings = field(default_factory=ExportSettings)


def main(config: Any) -> None:
    """Read, train or load weights, write."""
    settings = plain(config.export, ExportSettings)
    if settings.precision not in ("fp32", "int8"):
        raise InputError(f"export.precision must be fp32 or int8, not {settings.precision}")
    if settings.format not in _ENDINGS:
        raise InputError(f"export.format must be one of {', '.join(_ENDINGS)}, not {settings.format}")
    if settings.format != "onnx":
        # Said before anything is trained.
        Runtime(cast(RuntimeName, settings.format), cast(Precision, settings.precision)).version()
    architecture, name = _read(settings)
    ending = _ENDINGS[settings.format]
    output = Path(settings.output) if settings.output else Path(f"{name}-{settings.precision}{ending}")
    rows: dict[str, str] = {}
    images = dataset_settings(plain(config.dataset, DatasetConfig))
    network = Network(architecture)
    # Everything that can be refused is refused before anything is trained.
    size_bytes = 4 * sum(each.numel() for each in network.parameters())
    weights = output.with_name(output.name.removesuffix(ending) + ".safetensors")
    if output.suffix == ".safetensors":
        raise InputError(f"export.output={output} would be taken for weights: let it end in {ending}")
    check_output(output, "export.output", settings.overwrite, 2 * size_bytes)
    if settings.train:
        check_output(weights, "export.output", settings.overwrite)
        split = data.load(images, architecture.resolution)
        network, top1 = train(architecture, split, recipe_of(plain(config.accuracy, TrainConfig), seed=0))
        write_tensors(weights, network.state_dict())
        rows |= {"top-1": f"{top1:.2f} % on unseen images of {images.name}", "weights": str(weights)}
    elif settings.weights:
        _load_weights(network, Path(settings.weights))
    else:
        rows["weights"] = "random: good for timing, not for recognising anything"
    network.eval().cpu()
    model = onnx_model(network, (1, 3, architecture.resolution, architecture.resolution), name)
    calibrating: list[NDArray[np.float32]] = []
    if settings.precision == "int8":
        batches = data.load(images, architecture.resolution).train.batches(CALIBRATION_IMAGES, False, 0)
        calibrating = [image[None].numpy() for image in next(batches)[0]]
    if settings.format == "onnx":
        write_atomically(output, (quantize(model, calibrating) if calibrating else model).SerializeToString())
    else:
        ranges = activation_ranges(model, calibrating) if calibrating else None
        hswish = settings.format == "litert_split"
        write_atomically(
            output, litert_model(model, ranges, split_hswish=hswish, weights_outside=False).content()
        )
    counted, side = cost(architecture), architecture.resolution
    rows |= {
        "network": f"{counted.parameters / 1e6:.2f} M parameters, {counted.macs / 1e6:.0f} M MACs",
        "input": f"{model.graph.input[0].name}: 1 x "
        + (f"3 x {side} x {side}" if settings.format == "onnx" else f"{side} x {side} x 3"),
        "file": f"{output} ({output.stat().st_size / 1e6:.1f} MB)",
    }
    print_summary(f"exported {name}", rows, _next(settings, output))


def _next(settings: ExportSettings, output: Path) -> str:
    if settings.train or settings.weights:
        check = f"import onnxruntime; onnxruntime.InferenceSession({str(output)!r})"
        if settings.format != "onnx":
            check = f"from ai_edge_litert.interpreter import Interpreter; Interpreter({str(output)!r})"
        return shlex.join(["python", "-c", check])
    return shell_line(
        "nas.export",
        export__architecture=settings.architecture,
        export__train="true",
        dataset="imagefolder",
        dataset__root="IMAGES",
    )


def _read(settings: ExportSettings) -> tuple[Architecture, str]:
    path = Path(settings.architecture)
    if path.suffix in (".yaml", ".yml"):
        return Architecture.from_file(path), path.stem
    try:
        name = settings.architecture
        return reference(name, settings.resolution or 224, settings.classes or 1000), name
    except UnknownReferenceError as error:
        raise InputError(f"{error}; or give the path of an architecture's YAML file") from None


def _load_weights(network: Network, path: Path) -> None:
    tensors, _ = read_tensors(path, Gate(str(path), WeightsError))
    try:
        network.load_state_dict(tensors)
    except (RuntimeError, KeyError, WeightsError) as error:
        raise WeightsError(f"{path} does not hold the weights of this network: {error}") from None


if __name__ == "__main__":
    command("export", ExportConfig, main)
