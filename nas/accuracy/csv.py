"""Networks with known accuracy, read from CSV files and checked line by line."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.accuracy.features import not_covered
from search_spaces.architecture import Architecture
from search_spaces.blocks import ArchitectureError, Block, Head, Stem
from search_spaces.errors import InputError
from search_spaces.gate import MEGABYTE, Gate
from search_spaces.references import UnknownReferenceError, reference

# Two trainings of one network on ImageNet differ by a few tenths of a point.
REPEAT_TOLERANCE = 1.0
_MOST_BYTES = 8 * MEGABYTE
_MOST_LAYERS = 64


class AccuracyDataError(InputError):
    """A file of accuracies that cannot be used. The message names the file, the line and the reason."""


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A network whose ImageNet top-1 is known.

    Attributes:
        architecture: the network.
        top1: percent.
        recipe: how it was trained: one of :data:`nas.accuracy.process.RECIPES`, or a name of
            one's own.
        variant: what is left out together in evaluation, e.g. one width multiplier of one family.
    """

    architecture: Architecture
    top1: float
    recipe: str
    variant: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a CSV file."""

    path: Path
    number: int
    cells: dict[str, str]

    def fail(self, reason: str) -> AccuracyDataError:
        """An error that names this line."""
        return AccuracyDataError(f"{self.path}, line {self.number}: {reason}")

    def integer(self, column: str) -> int:
        """A whole number.

        Raises:
            AccuracyDataError: if it is none.
        """
        try:
            return int(self.cells[column])
        except ValueError:
            raise self.fail(f"{column} is no whole number: {self.cells[column]!r}") from None

    def number_in(self, column: str, low: float, high: float) -> float:
        """A number between two bounds.

        Raises:
            AccuracyDataError: if it is none, or outside.
        """
        text = self.cells[column]
        try:
            value = float(text)
        except ValueError:
            raise self.fail(f"{column} is no number: {text!r}") from None
        if not (math.isfinite(value) and low <= value <= high):
            raise self.fail(f"{column} must be between {low:g} and {high:g}, not {text}")
        return value

    def top1(self) -> float:
        """The column ``top1`` in percent; 100 is refused, as the logarithm of the error is what is fitted.

        Raises:
            AccuracyDataError: if it is no number, or outside.
        """
        value = self.number_in("top1", 0, 100)
        if value == 100:
            raise self.fail("top1 is 100, which no network reaches on ImageNet")
        return value


def read_lines(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> list[Line]:
    """The lines of a CSV file with a header; required cells are never empty.

    Raises:
        AccuracyDataError: on an unreadable file, an unknown or missing column, or a missing value.
    """
    gate = Gate(str(path), AccuracyDataError)
    text = gate.text(path, _MOST_BYTES)
    try:
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        gate.unreadable(error)
    if len(rows) < 2:
        raise AccuracyDataError(f"{path} holds no networks")
    header = rows[0]
    known = [*required, *optional]
    for column in header:
        if column not in known:
            raise AccuracyDataError(f"{path}: unknown column {column!r}; known: {', '.join(known)}")
        if header.count(column) > 1:
            raise AccuracyDataError(f"{path}: column {column!r} appears twice")
    for column in required:
        if column not in header:
            raise AccuracyDataError(f"{path}: column {column!r} is missing")
    lines = []
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise AccuracyDataError(f"{path}, line {number}: {len(row)} cells, but {len(header)} columns")
        line = Line(path, number, dict(zip(header, row, strict=True)))
        for column in required:
            if not line.cells[column].strip():
                raise line.fail(f"{column} is empty")
        lines.append(line)
    return lines


_ACCEL_WIDTHS = (16, 24, 40, 80, 112, 192, 320)
_ACCEL_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_ACCEL_CHOICES = ("expansion", "kernel", "layers", "se")


def read_accel(path: Path) -> list[TrainedNetwork]:
    """The networks of Accel-NASBench (afzalxo/Accel-NASBench, ImageNet, 224 px, short recipe).

    Its skeleton: a stem of 32 channels, seven MobileNetV2 stages, a head of 1280, swish everywhere. In
    our tables swish is h-swish, and squeeze-and-excitation has a quarter of the expanded channels
    where the benchmark has a quarter of the block's input.

    Raises:
        AccuracyDataError: on a bad line.
    """
    choices = [f"stage{stage}_{choice}" for stage in range(1, 8) for choice in _ACCEL_CHOICES]
    lines = read_lines(path, [*choices, "top1"], ["macs_m", "params_m", "latency_zcu102_ms"])
    return _checked(
        (
            line,
            TrainedNetwork(
                _accel_architecture(line),
                line.top1(),
                "accel_nasbench",
                f"accel_nasbench line {line.number}",
            ),
        )
        for line in lines
    )


def _accel_architecture(line: Line) -> Architecture:
    blocks: list[Block] = []
    channels = 32
    try:
        for stage, (width, stride) in enumerate(zip(_ACCEL_WIDTHS, _ACCEL_STRIDES, strict=True), start=1):
            expansion, kernel, layers, se = (
                line.integer(f"stage{stage}_{choice}") for choice in _ACCEL_CHOICES
            )
            if not 0 <= layers <= _MOST_LAYERS:
                raise line.fail(f"stage{stage}_layers must be between 0 and {_MOST_LAYERS}, not {layers}")
            for number in range(layers):
                blocks.append(
                    Block(
                        kind="inverted_residual",
                        kernel=kernel,
                        in_channels=channels,
                        expanded_channels=channels * expansion,
                        out_channels=width,
                        stride=stride if number == 0 else 1,
                        activation="hswish",
                        se=bool(se),
                        expansion_conv=expansion != 1,
                    )
                )
                channels = width
        return Architecture(224, Stem(32, "hswish"), tuple(blocks), Head(1280, 0, "hswish"))
    except ArchitectureError as error:
        raise line.fail(str(error)) from None


def read_published(path: Path) -> list[TrainedNetwork]:
    """Published MobileNets (tensorflow/models, research/slim/nets); a variant is one width of a family.

    Raises:
        AccuracyDataError: on a bad line.
    """
    lines = read_lines(
        path,
        ["model", "width_multiplier", "resolution", "top1"],
        ["top5", "macs_m", "params_m", "pixel1_ms", "pixel2_ms", "pixel3_ms", "source"],
    )

    def read(line: Line) -> TrainedNetwork:
        percent = round(100 * line.number_in("width_multiplier", 0.01, 9.99))
        name = line.cells["model"] + ("" if percent == 100 else f"_{percent:03d}")
        return TrainedNetwork(_reference(line, name), line.top1(), "mobilenet", name)

    return _checked((line, read(line)) for line in lines)


def read_extra(path: Path) -> list[TrainedNetwork]:
    """Networks measured by the user; the columns are explained in ``conf/accuracy/imagenet.yaml``.

    Raises:
        AccuracyDataError: on a bad line.
    """
    lines = read_lines(path, ["architecture", "top1"], ["resolution", "recipe"])

    def read(line: Line) -> TrainedNetwork:
        name = line.cells["architecture"].strip()
        architecture = _own(line, name) if name.endswith((".yaml", ".yml")) else _reference(line, name)
        if reason := not_covered(architecture):
            raise line.fail(reason)
        recipe = line.cells.get("recipe", "").strip() or "mobilenet"
        return TrainedNetwork(architecture, line.top1(), recipe, name)

    return _checked((line, read(line)) for line in lines)


def _own(line: Line, name: str) -> Architecture:
    try:
        architecture = Architecture.from_file(line.path.parent / name)
    except ArchitectureError as error:
        raise line.fail(str(error)) from None
    if line.cells.get("resolution") and architecture.resolution != line.integer("resolution"):
        raise line.fail(f"{name} has resolution {architecture.resolution}")
    return architecture


def _reference(line: Line, name: str) -> Architecture:
    try:
        if not line.cells.get("resolution"):
            return reference(name)
        return reference(name, line.integer("resolution"))
    except (UnknownReferenceError, ArchitectureError) as error:
        raise line.fail(str(error)) from None


def _checked(pairs: Iterable[tuple[Line, TrainedNetwork]]) -> list[TrainedNetwork]:
    # Repeats stay in: they tell the noise. Contradictions do not.
    seen: dict[tuple[Architecture, str], tuple[Line, float]] = {}
    networks = []
    for line, network in pairs:
        first, top1 = seen.setdefault((network.architecture, network.recipe), (line, network.top1))
        if abs(network.top1 - top1) > REPEAT_TOLERANCE:
            raise line.fail(
                f"repeats the architecture of line {first.number} with top-1 {network.top1:g}, not {top1:g}"
            )
        networks.append(network)
    return networks
