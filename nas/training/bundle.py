"""A trained network as a folder that works without this project: models, weights, code, words.

network.onnx, network-int8.onnx     for ONNX Runtime
network.safetensors                 weights, keys as in torchvision: ``features`` and ``classifier``
network.py                          rebuilds the network and loads the weights with torch alone
predict.py                          names what is on pictures, with ONNX Runtime, NumPy and Pillow
labels.txt, preprocessing.json      the classes, and how pictures become the network's input
README.md                           the model card: figures, and how far each file agrees with PyTorch
"""

from __future__ import annotations

import importlib.util
import pprint
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.graphs.onnx import onnx_model
from nas.graphs.quantize import quantize
from nas.measuring.models import OnnxRunner
from nas.network import Layer, Network, layers_of
from nas.pictures.recognition import Recognition
from nas.saving import is_half_written, markdown_text, write_together
from nas.training.network_code import NETWORK_CODE, predict_code
from search_spaces.errors import InputError
from search_spaces.ops import Add, Conv, Linear, Pool, SqueezeExcitation

FP32, INT8, WEIGHTS, CODE, PREDICT, CARD = (
    "network.onnx",
    "network-int8.onnx",
    "network.safetensors",
    "network.py",
    "predict.py",
    "README.md",
)
# Of logits, relative to the largest: sums come in another order in another library.
_TOLERANCE = 1e-3


def holds_bundle(folder: Path) -> bool:
    """True if a bundle replaces nothing of others there: there is one, whole or half-written, or nothing.

    Args:
        folder: where a bundle is to go.
    """
    if not folder.is_dir():
        return True
    names = {each.name for each in folder.iterdir() if not each.name.startswith(".")}
    return not names or names >= {FP32, WEIGHTS, CODE, PREDICT} or is_half_written(folder)


class BundleError(InputError):
    """A file of a bundle that does not compute what the network computes; nothing was written."""


@dataclass(frozen=True, slots=True)
class Parity:
    """The agreement of a file with the network in PyTorch.

    Attributes:
        difference: the largest of any logit, as a share of the largest logit.
        same_answers: share of images that get the same class.
        images: how many there were.
    """

    difference: float
    same_answers: float
    images: int

    @classmethod
    def of(cls, found: NDArray[np.float32], expected: NDArray[np.float32]) -> Parity:
        """From logits, both (N, classes)."""
        largest = max(float(np.abs(expected).max()), 1e-9)
        same = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
        return cls(float(np.abs(found - expected).max()) / largest, same, len(found))


def write_bundle(
    folder: Path,
    network: Network,
    recognition: Recognition,
    images: Sequence[NDArray[np.float32]],
    facts: Mapping[str, Mapping[str, str]],
    title: str = "network",
) -> dict[str, Parity]:
    """Write the bundle of a trained network, all files together or none.

    Args:
        folder: made if it is not there; files of an earlier bundle are replaced.
        network: trained; its running statistics are folded into the ONNX files.
        recognition: classes and preprocessing.
        images: training images, (1, 3, H, W) each: they tell the ranges of the int8 model, and all files are
            compared with PyTorch on them.
        facts: for the model card: rows (name, value) by heading.
        title: of the model card.

    Returns:
        By file, how far it agrees with PyTorch.

    Raises:
        BundleError: if a file in fp32 does not compute what the network computes.
        SaveError: if the folder cannot be written.
    """
    architecture = network.architecture
    if len(recognition.classes) != architecture.classes:
        raise BundleError(
            f"the network has {architecture.classes} classes, the images have {len(recognition.classes)}"
        )
    network = network.eval().cpu()
    side = architecture.resolution
    fp32 = onnx_model(network, (1, 3, side, side), architecture.id)
    int8 = quantize(fp32, images)
    for model in (fp32, int8):
        model.producer_name = "mobilenet-nas"
        notes = {"architecture": architecture.to_yaml(), **recognition.notes()}
        onnx.helper.set_model_props(model, notes)
    contents: dict[str, str | bytes] = {
        FP32: fp32.SerializeToString(),
        INT8: int8.SerializeToString(),
        WEIGHTS: safetensors.torch.save(
            {name: each.detach().contiguous() for name, each in named_weights(network).items()},
            recognition.notes(),
        ),
        CODE: network_code(network),
        PREDICT: predict_code(FP32),
        **recognition.files(),
    }
    parity = _parity(network, contents, images)
    for name, each in parity.items():
        if name != INT8 and not each.difference <= _TOLERANCE:
            raise BundleError(
                f"{name} does not compute what the network computes: logits differ by {each.difference:.1e} "
                "of the largest; nothing was written"
            )
    contents[CARD] = _card(title, facts, parity)
    write_together(folder, contents)
    return parity


# -- weights and code ------------------------------------------------------------------------------


def named_weights(network: Network) -> dict[str, Tensor]:
    """The weights of a network by the names that torchvision's MobileNetV3 has for them."""
    own = network.state_dict()
    names = [f"{prefix}.{name}" for prefix, module in _named_modules(network) for name in module.state_dict()]
    assert len(names) == len(own)
    return dict(zip(names, own.values(), strict=True))


def _named_modules(network: Network) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold weights, in order, with their names in torchvision."""
    layers = layers_of(network)
    for number, layer in enumerate(layers):
        head = number == len(layers) - 1
        modules = (
            each for each in layer.modules() if isinstance(each, nn.Conv2d | nn.BatchNorm2d | nn.Linear)
        )
        position = 0
        # Place of the next linear layer in torchvision's classifier: a hidden one comes first, then its norm,
        # activation and dropout; without one the dropout does.
        linear = 0 if sum(isinstance(each, Linear) for each in layer.operators) > 1 else 1
        for operator in layer.operators:
            if isinstance(operator, Linear):
                for place in range(2 if operator.norm else 1):
                    yield f"classifier.{linear + place}", next(modules)
                linear += 4 if operator.norm else 3
            elif isinstance(operator, Conv):
                inside = number == 0 or head
                prefix = f"features.{number + position}" if head else f"features.{number}"
                prefix = prefix if inside else f"{prefix}.block.{position}"
                for place in range(2 if operator.norm else 1):
                    yield f"{prefix}.{place}", next(modules)
                position += 1
            elif isinstance(operator, SqueezeExcitation):
                for part in ("fc1", "fc2"):
                    yield f"features.{number}.block.{position}.{part}", next(modules)
                position += 1


def network_code(network: Network) -> str:
    """Source of a Python file that rebuilds the network with torch alone."""
    layers = layers_of(network)
    features = [_described(layer) for layer in layers[:-1]]
    head = _described(layers[-1])
    tail = [each for each in head if each[0] == "conv"]
    classifier = [each for each in head if each[0] == "linear"]
    table = f"STEM = {features[0][0]!r}\n"
    for name, value in (("BLOCKS", features[1:]), ("TAIL", tail), ("CLASSIFIER", classifier)):
        table += f"{name} = {pprint.pformat(value, width=110)}\n"
    side = network.architecture.resolution
    return NETWORK_CODE.replace("# TABLE\n", table).replace("SIDE_OF_IMAGES", str(side))


def _described(layer: Layer) -> list[tuple[object, ...]]:
    """The operators of a layer as plain tuples."""
    norms = (each.eps for each in layer.modules() if isinstance(each, nn.BatchNorm2d))
    found: list[tuple[object, ...]] = []
    for each in layer.operators:
        if isinstance(each, Linear):
            norm = (next(norms),) if each.norm else ()
            found.append(("linear", each.in_channels, each.out_channels, each.activation, *norm))
        elif isinstance(each, Conv):
            shape = (each.in_channels, each.out_channels, each.kernel, each.stride, each.groups)
            found.append(("conv", *shape, each.activation, next(norms) if each.norm else None))
        elif isinstance(each, SqueezeExcitation):
            found.append(("se", each.channels, each.squeezed, each.activation, each.gating))
        elif isinstance(each, Add):
            found.append(("add",))
        else:
            assert isinstance(each, Pool)
    return found


# -- parity and card -------------------------------------------------------------------------------


def _parity(
    network: Network, contents: Mapping[str, str | bytes], images: Sequence[NDArray[np.float32]]
) -> dict[str, Parity]:
    stacked = torch.from_numpy(np.concatenate(images))
    with torch.no_grad():
        expected = network(stacked).numpy()
    found: dict[str, Parity] = {}
    for name in (FP32, INT8):
        content = contents[name]
        assert isinstance(content, bytes)
        runner = OnnxRunner(content, 1)
        answers = []
        for image in images:
            runner.take(np.ascontiguousarray(image))
            answers.append(runner.output().copy())
        found[name] = Parity.of(np.concatenate(answers), expected)
    with tempfile.TemporaryDirectory() as place:
        for name in (CODE, WEIGHTS):
            content = contents[name]
            (Path(place) / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        described = importlib.util.spec_from_file_location("bundled_network", Path(place) / CODE)
        assert described is not None
        assert described.loader is not None
        module = importlib.util.module_from_spec(described)
        described.loader.exec_module(module)  # what network_code wrote a moment ago
        with torch.no_grad():
            rebuilt = module.load(str(Path(place) / WEIGHTS))(stacked).numpy()
    found[f"{CODE} with {WEIGHTS}"] = Parity.of(rebuilt, expected)
    return found


def _card(title: str, facts: Mapping[str, Mapping[str, str]], parity: Mapping[str, Parity]) -> str:
    lines = [f"# {markdown_text(title)}", ""]
    for heading, rows in facts.items():
        lines += [f"## {heading}", "", "| | |", "|---|---|"]
        lines += [f"| {markdown_text(name)} | {markdown_text(value)} |" for name, value in rows.items()]
        lines.append("")
    lines += [
        "## Agreement with PyTorch",
        "",
        "| file | largest difference of a logit, of the largest logit | same answer | images |",
        "|---|---|---|---|",
        *(
            f"| {name} | {each.difference:.1e} | {each.same_answers:.1%} | {each.images} |"
            for name, each in parity.items()
        ),
        "",
        "## Use",
        "",
        "    python predict.py photo.jpg        (needs onnxruntime, numpy, pillow)",
        "    import network; network.load()     (needs torch)",
    ]
    return "\n".join(lines) + "\n"
