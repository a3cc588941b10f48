"""``python -m nas.export``: an architecture as an ONNX, LiteRT or ExecuTorch file, the graph that was timed.

A network that was trained goes out with what it needs to recognise pictures: the names of its classes and
its preprocessing, in the metadata of the ONNX file and in files beside it.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from omegaconf import MISSING
from torch import Tensor, nn

from nas import __version__, data
from nas.accuracy.source import Judgement
from nas.accuracy.train import Recipe, calibration_images, fit, judge, judge_quantized
from nas.assembly import dataset_settings, recipe_of
from nas.backbones import TaskModel, head_classes, raw_outputs, task_model
from nas.command import command
from nas.console import console, print_summary
from nas.cost import cost
from nas.data import DatasetSettings
from nas.graphs.executorch import executorch_program
from nas.graphs.litert import litert_model
from nas.graphs.onnx import onnx_model
from nas.graphs.quantize import activation_ranges, quantize
from nas.graphs.task import OUTPUTS, task_graph
from nas.measuring.models import litert_content
from nas.model_card import RANKING, FinishedNetwork, bundle
from nas.network import Network, WeightsError, folded_weights
from nas.pictures.folders import listed
from nas.pictures.recognition import PREPROCESSING, Recognition, versions
from nas.runtimes.runtime import ENGINES, Runtime
from nas.runtimes.subject import Precision
from nas.saving import SaveError, check_apart, check_folder, check_output, write_atomically
from nas.settings import LEAST_RESOLUTION, Chosen, DatasetConfig, TrainConfig
from nas.shell import shell_line
from nas.tensors import read_tensors, write_tensors
from nas.training.pretrained import table_note
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.gate import Gate
from search_spaces.references import UnknownReferenceError, reference
from search_spaces.tasks import Task, TaskNetwork, task_of

_ENDINGS = {"onnx": ".onnx"} | {name: each.ending for name, each in ENGINES.items() if each.ending}
# What would be taken for something else under such a name.
_OTHER_ENDINGS = {".safetensors", ".yaml", ".yml", ".json", ".txt", ".pt", ".pth", ".pte", ".onnx", ".tflite"}

# Share of the largest output that ONNX Runtime and PyTorch may differ by.
_MOST_OFF = 1e-3
# What allows replacing a file.
_OVERWRITE = "export.overwrite=true"


@dataclass
class ExportSettings:
    """The network to export, and as what.

    Attributes:
        architecture: a YAML file of a study's folder, or the name of a reference.
        output: the file; null: in the current folder, called as the network.
        weights: safetensors file of trained weights; null: random weights, good for timing only.
        train: train on the dataset first, with the settings of accuracy=train.
        precision: fp32, or int8 quantised with the dataset's training images.
        format: onnx, litert, litert_split (int8 with hard swish in operators that XNNPACK takes), or
            executorch (fp32).
        overwrite: replace files that are there already.
        resolution: side of the input in pixels; null: 224 of a reference, a table's own.
        classes: null: those of the dataset or the weights; else 1000 of a reference, a table's own.
        task: classification; or segmentation or detection, with a head in place of the classifier.
        task_classes: that this head tells apart, the background included; null: those of the weights, or
            torchvision's 21 or 91.
        batch: pictures at once, or dynamic for any number; onnx only.
        bundle: write a folder too that works without this project: ONNX in fp32 and int8, weights, code that
            rebuilds the network, model card.
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
    task: str = "classification"
    task_classes: int | None = None
    batch: str = "1"
    bundle: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "int8"):
            raise InputError(f"export.precision must be fp32 or int8, not {self.precision}")
        if self.format not in _ENDINGS:
            raise InputError(f"export.format must be one of {', '.join(_ENDINGS)}, not {self.format}")
        if self.batch != "dynamic" and not (self.batch.isdecimal() and int(self.batch) >= 1):
            raise InputError(f"export.batch must be a number of pictures or dynamic, not {self.batch}")
        if self.batch != "1" and self.format != "onnx":
            raise InputError(f"export.batch={self.batch} goes with export.format=onnx, not {self.format}")
        if self.resolution is not None and self.resolution < LEAST_RESOLUTION:
            raise InputError(
                f"export.resolution must be at least {LEAST_RESOLUTION} px, not {self.resolution}"
            )
        if self.classes is not None and self.classes < 1:
            raise InputError(f"export.classes must be at least 1, not {self.classes}")
        if self.bundle and not (self.train or self.weights):
            raise InputError(
                "export.bundle=true needs a trained network: export.train=true or export.weights=FILE"
            )
        task = task_of(self.task, self.task_classes, "export")
        others = {
            "train=true": self.train,
            "bundle=true": self.bundle,
            f"precision={self.precision}": self.precision != "fp32",
            f"format={self.format}": self.format != "onnx",
            "batch=dynamic": self.batch == "dynamic",
        }
        if task and any(others.values()):
            wrong = next(name for name, given in others.items() if given)
            raise InputError(
                f"export.{wrong} does not go with export.task={task.name}: that is written as ONNX in fp32, "
                "for a fixed number of pictures, with weights from export.weights or random ones"
            )
        if self.train and self.weights:
            raise InputError("export.train=true and export.weights exclude each other: leave one out")


@dataclass
class ExportConfig:
    """Everything ``python -m nas.export`` can be told."""

    accuracy: Chosen = None
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    export: ExportSettings = field(default_factory=ExportSettings)


@dataclass(frozen=True, slots=True)
class _Trained:
    """Weights with what was kept of their training.

    Attributes:
        tensors: by name, in the layout of :class:`Network`.
        recognition: classes and preprocessing, None where nobody noted them.
        images: what they were trained on, None where nobody noted it.
    """

    tensors: Mapping[str, Tensor]
    recognition: Recognition | None
    images: DatasetSettings | None


def main(config: ExportConfig) -> None:
    """Read, train or load weights, write."""
    settings = config.export
    if settings.format != "onnx":
        # Said before anything is trained.
        Runtime(settings.format, cast(Precision, settings.precision)).version()
    output, weights = _outputs(settings)
    trained = _read_weights(Path(settings.weights)) if settings.weights else None
    if task := task_of(settings.task, settings.task_classes, "export"):
        _export_task(settings, task, output, trained)
        return
    images = _images(config, settings, trained)
    if images:
        console.print(data.check(images))
    architecture, name = _architecture(settings, trained, data.class_count(images) if images else None)
    network = Network(architecture)
    # Everything that can be refused is refused before anything is trained.
    size_bytes = 4 * sum(each.numel() for each in network.parameters())
    check_output(output, "export.output", settings.overwrite, 2 * size_bytes, _OVERWRITE)
    split = data.load(images, architecture.resolution) if images else None
    recognition = split.recognition if split else trained.recognition if trained else None
    if recognition:
        # Weights suit pictures of any size; what is written beside them says that of the file.
        preprocessing = recognition.preprocessing.at(architecture.resolution)
        recognition = dataclasses.replace(recognition, preprocessing=preprocessing)
    _check_beside(output, recognition, settings.overwrite)
    bundled = output.with_name(f"{name}-bundle")
    check_apart({"export.output": output, "export.bundle": bundled if settings.bundle else None})
    if settings.bundle:
        check_folder(bundled, "export.output", settings.overwrite)
    rows: dict[str, str] = {}
    judged: Judgement | None = None
    if settings.train:
        assert split is not None
        assert images is not None
        check_output(weights, "export.output", settings.overwrite, otherwise=_OVERWRITE)
        recipe = _recipe(config)
        network = fit(architecture, split, recipe)
        judged = judge(network, split, recipe)
        notes = {**_notes(split.recognition, images), **table_note(network.architecture)}
        write_tensors(weights, network.state_dict(), notes)
        rows["weights"] = str(weights)
    elif trained:
        _load_weights(network, trained, Path(str(settings.weights)))
        if split:
            judged = judge(network, split, Recipe())
    else:
        rows["weights"] = "random: good for timing, not for recognising anything"
    network.eval().cpu()
    if settings.bundle:
        assert split is not None
        assert judged is not None
        assert images is not None
        recipe_rows = (
            dataclasses.asdict(_recipe(config)) if settings.train else {"weights": str(settings.weights)}
        )
        known = FinishedNetwork(network, split, images, recipe_rows, {RANKING: judged})
        rows |= bundle(bundled, known, title=name)
    if split and judged:
        rows["top-1"] = _shown(judged)
        if settings.precision == "int8":
            rows["top-1 in int8"] = _shown(judge_quantized(network, split))
        rows["chance"] = f"{judged.majority:.2f} %, by always answering {judged.majority_class}"
    calibrating = calibration_images(split) if split and settings.precision == "int8" else []
    model = _model(network, settings, name, calibrating, recognition)
    if recognition:
        for file, content in recognition.files().items():
            write_atomically(output.with_name(file), content)
        rows["recognises"] = (
            f"{listed(recognition.classes)} ({', '.join(recognition.files())} beside the file)"
        )
    # Last of all: while it is not there, the same command goes on.
    write_atomically(output, model)
    counted, side = cost(architecture), architecture.resolution
    rows |= {
        "network": f"{counted.parameters / 1e6:.2f} M parameters, {counted.macs / 1e6:.0f} M MACs",
        "input": f"input: {settings.batch} x "
        + (f"3 x {side} x {side}" if settings.format in ("onnx", "executorch") else f"{side} x {side} x 3"),
        "file": f"{output} ({output.stat().st_size / 1e6:.1f} MB)",
    }
    print_summary(f"exported {name}", rows, _next(settings, output))


def _export_task(settings: ExportSettings, task: Task, output: Path, trained: _Trained | None) -> None:
    """Write a network with a task's head instead of its classifier."""
    architecture, name = _architecture(settings, trained, None)
    known = head_classes(task, trained.tensors) if trained else None
    if known is not None and settings.task_classes not in (None, known):
        raise InputError(
            f"export.task_classes={settings.task_classes}, but the head in {settings.weights} has {known} "
            "classes: leave it out"
        )
    task = dataclasses.replace(task, classes=known or task.classes)
    whole = TaskNetwork(architecture, task)
    network = Network(architecture)
    model = task_model(network, task)
    size_bytes = 4 * sum(each.numel() for each in model.parameters())
    check_output(output, "export.output", settings.overwrite, 2 * size_bytes, _OVERWRITE)
    rows = {"weights": "random: good for timing, not for finding anything"}
    if trained:
        path = Path(str(settings.weights))
        complete = any(each.startswith("backbone.") for each in trained.tensors)
        _load_weights(model if complete else network, trained, path)
        rows["weights"] = f"{path}" + ("" if complete else "; those of the head are random: train it")
    made = task_graph(whole, folded_weights(model.eval()), batch=int(settings.batch))
    made.producer_name = "mobilenet-nas"
    made.producer_version = __version__
    notes = {
        "architecture": architecture.to_yaml(),
        "task": json.dumps({"name": task.name, "classes": task.classes}),
        "versions": json.dumps(versions()),
    }
    if trained and trained.recognition:
        preprocessing = trained.recognition.preprocessing.at(architecture.resolution)
        notes["preprocessing"] = json.dumps(preprocessing.to_dict())
    onnx.helper.set_model_props(made, notes)
    content = made.SerializeToString()
    rows["parity"] = _parity(content, model, whole, int(settings.batch))
    write_atomically(output, content)
    side = architecture.resolution
    rows |= {
        "network": f"{size_bytes / 4e6:.2f} M parameters, {task.name} of {task.classes} classes",
        "input": f"input: {settings.batch} x 3 x {side} x {side}, normalised as in training",
        "outputs": f"{', '.join(OUTPUTS[task.name])}"
        + ("" if task.name == "segmentation" else ": of each anchor, neither decoded nor sorted out"),
        "file": f"{output} ({output.stat().st_size / 1e6:.1f} MB)",
    }
    timed = shell_line(
        "nas.compare", compare__networks=f"[{settings.architecture}]", compare__task=settings.task
    )
    print_summary(f"exported {name}", rows, timed)


def _parity(content: bytes, model: TaskModel, whole: TaskNetwork, batch: int) -> str:
    """The distance of the file's outputs from PyTorch's on random images.

    Raises:
        InputError: if it does not compute the same.
    """
    side = whole.resolution
    images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = raw_outputs(model, images)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = list(OUTPUTS[whole.task.name])
    found = dict(zip(names, session.run(names, {"input": images.numpy()}), strict=True))
    largest = max(float(each.abs().max()) for each in wanted.values())
    off = max(float(np.abs(found[name] - wanted[name].numpy()).max()) for name in names)
    if not off <= _MOST_OFF * largest:
        raise InputError(f"not written: the graph is {off:.2g} off PyTorch's outputs (up to {largest:.2g})")
    return f"within {off / (largest or 1):.1g} of PyTorch's largest output (ONNX Runtime, random images)"


def _shown(judged: Judgement) -> str:
    chance = "" if judged.above_chance else "; not above chance"
    return (
        f"{judged.top1:.2f} % of {judged.images:,} unseen images, ± {judged.deviation:.1f}; "
        f"mean of the classes {judged.class_mean:.2f} %{chance}"
    )


def _outputs(settings: ExportSettings) -> tuple[Path, Path]:
    """The model's file, and that of weights that are trained."""
    ending = _ENDINGS[settings.format]
    path = Path(settings.architecture)
    name = path.stem if path.suffix in (".yaml", ".yml") else settings.architecture
    what = settings.precision if settings.task == "classification" else settings.task
    output = Path(settings.output) if settings.output else Path(f"{name}-{what}{ending}")
    if output.name in ("", ".."):
        raise InputError(f"export.output={settings.output} is a folder: name a file in it")
    if output.suffix in _OTHER_ENDINGS - {ending}:
        what = "weights" if output.suffix == ".safetensors" else "another kind of file"
        raise InputError(f"export.output={output} would be taken for {what}: let it end in {ending}")
    return output, output.with_name(output.name.removesuffix(ending) + ".safetensors")


def _recipe(config: ExportConfig) -> Recipe:
    """The recipe of ``export.train=true``."""
    if not isinstance(config.accuracy, TrainConfig):
        raise InputError("export.train=true trains by the settings of accuracy=train: leave accuracy= out")
    return recipe_of(config.accuracy, seed=0)


def _images(
    config: ExportConfig, settings: ExportSettings, trained: _Trained | None
) -> DatasetSettings | None:
    """The images that are needed: those that were named, or those that the weights were trained on.

    Raises:
        InputError: if images are needed and none are known.
    """
    if not config.dataset.name:
        if config.dataset.root is not None:
            raise InputError("dataset.root needs the kind of dataset too, e.g. dataset=imagefolder")
        if settings.train:
            raise InputError("export.train=true needs images: add dataset=imagefolder dataset.root=IMAGES")
        if (settings.precision == "int8" or settings.bundle) and trained:
            if trained.images is None:
                wanted = "export.bundle=true" if settings.bundle else "export.precision=int8"
                raise InputError(
                    f"{wanted} is quantised with images that the weights were trained on: name "
                    "them, e.g. dataset=imagefolder dataset.root=IMAGES"
                )
            return trained.images
        return None
    # Images are only read for what needs them.
    needed = settings.train or trained
    return dataset_settings(config.dataset) if needed else None


def _architecture(
    settings: ExportSettings, trained: _Trained | None, of_dataset: int | None
) -> tuple[Architecture, str]:
    """The network, with as many classes as its images or weights have."""
    known = of_dataset
    if known is None and trained and trained.recognition:
        known = len(trained.recognition.classes)
    if settings.classes is not None and known is not None and settings.classes != known:
        raise InputError(
            f"export.classes={settings.classes}, but the images or weights have {known} classes: leave it out"
        )
    path = Path(settings.architecture)
    if path.suffix in (".yaml", ".yml"):
        architecture = Architecture.from_file(path)
        # A table that was found for other images has another last layer alone, one for other pixels the same.
        architecture = dataclasses.replace(
            architecture,
            resolution=settings.resolution or architecture.resolution,
            classes=settings.classes or known or architecture.classes,
        )
        return architecture, path.stem
    try:
        name = settings.architecture
        return reference(name, settings.resolution or 224, settings.classes or known or 1000), name
    except UnknownReferenceError as error:
        raise InputError(f"{error}; or give the path of an architecture's YAML file") from None


def _check_beside(output: Path, recognition: Recognition | None, overwrite: bool) -> None:
    """Refuse to replace what describes another model in the same folder.

    Raises:
        SaveError: if there is such a description.
    """
    for name, content in (recognition.files() if recognition else {}).items():
        path = output.with_name(name)
        check_output(path, "export.output", overwrite=True)
        if overwrite or not path.exists():
            continue
        there = Gate(str(path), SaveError).text(path)
        if _without_versions(name, there) != _without_versions(name, content):
            raise SaveError(
                f"{path} describes another network: name another folder in export.output, or set "
                "export.overwrite=true"
            )


def _without_versions(name: str, content: str) -> object:
    if name != PREPROCESSING:
        return content
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return content
    return (
        {key: value for key, value in found.items() if key != "versions"}
        if isinstance(found, dict)
        else found
    )


def _model(
    network: Network,
    settings: ExportSettings,
    name: str,
    calibrating: list[NDArray[np.float32]],
    recognition: Recognition | None,
) -> bytes:
    """The content of the file."""
    side = network.architecture.resolution
    model = onnx_model(network, (1, 3, side, side), name)
    # Without images nominal ranges: right for timing, as random weights are.
    ranges = activation_ranges(model, calibrating) if calibrating else {}
    int8 = settings.precision == "int8"
    if settings.format == "executorch":
        return executorch_program(model)
    if settings.format != "onnx":
        split_hswish = settings.format == "litert_split"
        made = litert_model(model, ranges if int8 else None, split_hswish=split_hswish, weights_outside=False)
        return litert_content(*made)
    if int8:
        model = quantize(model, ranges=ranges)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if settings.batch == "dynamic":
        batch.dim_param = "batch"
    else:
        batch.dim_value = int(settings.batch)
    model.producer_name = "mobilenet-nas"
    model.producer_version = __version__
    notes = recognition.notes() if recognition else {"versions": json.dumps(versions())}
    onnx.helper.set_model_props(model, {"architecture": network.architecture.to_yaml(), **notes})
    return bytes(model.SerializeToString())


def _next(settings: ExportSettings, output: Path) -> str:
    if settings.train or settings.weights:
        check = f"import onnxruntime; onnxruntime.InferenceSession({str(output)!r})"
        if settings.format == "executorch":
            check = f"from executorch.runtime import Runtime; Runtime.get().load_program({str(output)!r})"
        elif settings.format != "onnx":
            check = f"from ai_edge_litert.interpreter import Interpreter; Interpreter({str(output)!r})"
        return shlex.join(["python", "-c", check])
    return shell_line(
        "nas.export",
        export__architecture=settings.architecture,
        export__train="true",
        dataset="imagefolder",
        dataset__root="IMAGES",
    )


def _notes(recognition: Recognition, images: DatasetSettings) -> dict[str, str]:
    return {**recognition.notes(), "dataset": json.dumps(images.to_dict(), ensure_ascii=False)}


def _read_weights(path: Path) -> _Trained:
    gate = Gate(str(path), WeightsError)
    tensors, notes = read_tensors(path, gate)
    noted = notes.get("dataset")
    images = DatasetSettings.from_dict(gate.json(noted), gate) if noted is not None else None
    return _Trained(tensors, Recognition.from_notes(notes, gate), images)


def _load_weights(network: nn.Module, trained: _Trained, path: Path) -> None:
    try:
        network.load_state_dict(trained.tensors)
    except (RuntimeError, KeyError, WeightsError) as error:
        raise WeightsError(f"{path} does not hold the weights of this network: {error}") from None


if __name__ == "__main__":
    command("export", ExportConfig, main)
