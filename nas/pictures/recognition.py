"""The things a trained network needs beside its weights: names of classes, preprocessing.

It travels with them: in the notes of a safetensors file, in the metadata of an ONNX file, and as
``labels.txt`` and ``preprocessing.json`` beside a deployed one.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nas import __version__
from nas.pictures.preprocessing import Preprocessing
from search_spaces.errors import printable
from search_spaces.gate import Gate

LABELS = "labels.txt"
PREPROCESSING = "preprocessing.json"
_VERSIONS_OF = ("torch", "onnx", "pillow", "numpy")
_MOST_CLASSES = 100_000


@dataclass(frozen=True, slots=True)
class Recognition:
    """The preprocessing of a network's input and the names of its outputs.

    Attributes:
        classes: names, in the order of the network's outputs.
        preprocessing: from a picture to the network's input.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing

    def notes(self) -> dict[str, str]:
        """For the metadata of a model or of weights: values are JSON."""
        return {
            "classes": json.dumps(self.classes, ensure_ascii=False),
            "preprocessing": json.dumps(self.preprocessing.to_dict()),
            "versions": json.dumps(versions()),
        }

    def files(self) -> dict[str, str]:
        """Content of the files beside a model, by name."""
        described = {**self.preprocessing.to_dict(), "versions": versions()}
        return {LABELS: labels(self.classes), PREPROCESSING: json.dumps(described, indent=1) + "\n"}

    @classmethod
    def from_notes(cls, notes: Mapping[str, str], gate: Gate) -> Recognition | None:
        """The object that :meth:`notes` wrote, None where there is nothing of it.

        Raises:
            InputError: of the gate's kind, if it is damaged.
        """
        if "classes" not in notes or "preprocessing" not in notes:
            return None
        names = gate.sequence(gate.json(notes["classes"]), "classes", _MOST_CLASSES)
        classes = tuple(gate.string("classes", name) for name in names)
        return cls(classes, Preprocessing.from_dict(gate.json(notes["preprocessing"]), gate))


def labels(classes: Sequence[str]) -> str:
    """Names of classes, one a line, in the order of a network's outputs."""
    return "".join(f"{printable(' '.join(name.split()))}\n" for name in classes)


def versions() -> dict[str, str]:
    """Versions of what trains and exports."""
    return {"mobilenet-nas": __version__} | {name: importlib.metadata.version(name) for name in _VERSIONS_OF}
