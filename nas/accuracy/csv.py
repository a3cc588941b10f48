"""Networks with known accuracy, read from CSV files and checked line by line."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from nas.accuracy.features import not_covered
from nas.accuracy.networks import AccuracyDataError, Place, TrainedNetwork, checked
from nas.accuracy.recipes import RecipeError, checked_recipe
from search_spaces.architecture import Architecture
from search_spaces.blocks import ArchitectureError, Block, Head, Stem, make_divisible
from search_spaces.gate import MEGABYTE, Gate
from search_spaces.ops import Activation
from search_spaces.references import UnknownReferenceError, reference

_MOST_BYTES = 8 * MEGABYTE
_MOST_LAYERS = 64
# The predictor takes 1.6 s and 180 MB to learn so many, 27 times as long for three times as many.
_MOST_EXTRA = 1_000


@dataclass(frozen=True, slots=True)
class Line(Place):
    """A line of a CSV file."""

    cells: dict[str, str]

    def integer(self, column: str) -> int:
        """A whole number.

        Raises:
            AccuracyDataError: if it is none.
        """
        try:
            return int(self.cells[column])
        except ValueError:
            raise self.fail(f"{column} is no whole number: {self.cells[column]!r}") from None

    def wholes(self, column: str) -> list[int]:
        """Positive whole numbers with spaces between them.

        Raises:
            AccuracyDataError: if a word is none.
        """
        words = self.cells[column].split()
        if not all(re.fullmatch(r"0*[1-9]\d{0,8}", word) for word in words):
            raise self.fail(f"{column} must be positive whole numbers: {self.cells[column]!r}")
        return [int(word) for word in words]

    def number_up_to(self, column: str, high: float) -> float:
        """A number from 0 to a bound.

        Raises:
            AccuracyDataError: if it is none, or outside.
        """
        text = self.cells[column]
        try:
            value = float(text.removesuffix("%"))
        except ValueError:
            raise self.fail(f"{column} is no number: {text!r}") from None
        if not (math.isfinite(value) and 0 <= value <= high):
            raise self.fail(f"{column} must be between 0 and {high:g}, not {text}")
        return value

    def top1(self) -> float:
        """The column ``top1`` in percent.

        Raises:
            AccuracyDataError: if it is no number, outside, or a fraction.
        """
        return self.percent(self.number_up_to("top1", 100))


def read_lines(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> list[Line]:
    """The lines of a CSV file with a header; required cells are never empty.

    Read as people and spreadsheets write them: commas, semicolons or tabs between the cells, spaces around
    them, decimal commas where commas separate nothing, headings in any case (``Stage1 kernel``), ``top1``
    and ``accuracy`` for each other.

    Args:
        path: the file.
        required: columns whose cells are never empty.
        optional: further columns that it may have.

    Raises:
        AccuracyDataError: on an unreadable file, an unknown or missing column, or a missing value.
    """
    gate = Gate(str(path), AccuracyDataError)
    text = gate.text(path, _MOST_BYTES)
    heading = text.split("\n", 1)[0]
    separator = max(",;\t", key=heading.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True))
    except csv.Error as error:
        gate.unreadable(error)
    if len(rows) < 2:
        raise AccuracyDataError(f"{path} holds no networks")
    header = _columns(path, [cell.strip() for cell in rows[0]], [*required, *optional])
    for column in required:
        if column not in header:
            raise AccuracyDataError(f"{path}: column {column!r} is missing")
    lines = []
    for number, row in enumerate(rows[1:], start=2):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise AccuracyDataError(f"{path}, line {number}: {len(row)} cells, but {len(header)} columns")
        if separator != ",":
            cells = [_DECIMAL_COMMA.sub(r"\1.\2", cell) for cell in cells]
        line = Line(path, number, dict(zip(header, cells, strict=True)))
        for column in required:
            if not line.cells[column]:
                raise line.fail(f"{column} is empty")
        lines.append(line)
    return lines


_DECIMAL_COMMA = re.compile(r"^([+-]?\d+),(\d+)(?=\s*%?$)")
# Names of one quantity.
_TOP1 = ("accuracy", "top1", "acc", "acc1", "top1accuracy", "accuracytop1")


def _columns(path: Path, header: Sequence[str], known: Sequence[str]) -> list[str]:
    """The columns that headings mean.

    Raises:
        AccuracyDataError: on one that means none, or the same as another one.
    """
    meant = {_plain(column): column for column in known}
    if same := next((meant[name] for name in _TOP1 if name in meant), None):
        meant = dict.fromkeys(_TOP1, same) | meant
    found: list[str] = []
    for heading in header:
        column = meant.get(_plain(heading))
        if column is None:
            near = get_close_matches(_plain(heading), meant, 1, 0.7)
            guess = f"; did you mean {meant[near[0]]!r}?" if near else ""
            raise AccuracyDataError(f"{path}: unknown column {heading!r}{guess}; known: {', '.join(known)}")
        if column in found:
            raise AccuracyDataError(f"{path}: column {column!r} appears twice")
        found.append(column)
    return found


def _plain(heading: str) -> str:
    """A heading without case, spaces, hyphens, dots and a unit: ``Top-1 (%)`` is ``top1``."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"[(\[]\s*%\s*[)\]]|%$", "", heading.lower()))


_ACCEL_WIDTHS = (16, 24, 40, 80, 112, 192, 320)
_ACCEL_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_ACCEL_CHOICES = ("expansion", "kernel", "layers", "se")


def read_accel(path: Path) -> list[TrainedNetwork]:
    """The networks of Accel-NASBench (afzalxo/Accel-NASBench, ImageNet, 224 px, short recipe).

    Its skeleton: a stem of 32 channels, seven MobileNetV2 stages, a head of 1280, swish everywhere,
    squeeze-and-excitation to a quarter of the channels that enter a block.

    Raises:
        AccuracyDataError: on a bad line.
    """
    choices = [f"stage{stage}_{choice}" for stage in range(1, 8) for choice in _ACCEL_CHOICES]
    lines = read_lines(path, [*choices, "top1"], ["macs_m", "params_m", "latency_zcu102_ms"])
    return checked(
        (
            line,
            TrainedNetwork(_accel_architecture(line), line.top1(), "accel_nasbench", f"line {line.number}"),
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
                        activation="swish",
                        se=bool(se),
                        expansion_conv=expansion != 1,
                        se_channels=channels // 4 if se else 0,
                    )
                )
                channels = width
        return Architecture(224, Stem(32, "swish"), tuple(blocks), Head(1280, 0, "swish"))
    except ArchitectureError as error:
        raise line.fail(str(error)) from None


# Once-for-all's MobileNetV3: width, stride, activation and squeeze-and-excitation of its stages.
_OFA_STAGES: tuple[tuple[int, int, Activation, bool], ...] = (
    (24, 2, "relu", False),
    (40, 2, "relu", True),
    (80, 2, "hswish", False),
    (112, 1, "hswish", True),
    (160, 2, "hswish", True),
)


def read_supernet(path: Path) -> list[TrainedNetwork]:
    """Subnetworks of once-for-all's MobileNetV3 at width 1.0, with the supernet's weights.

    Its skeleton: a stem of 16 channels, one block without expansion, five stages, a head of 960 channels
    and a hidden layer of 1280.

    Raises:
        AccuracyDataError: on a bad line.
    """
    lines = read_lines(
        path,
        ["depths", "kernels", "expansions", "resolution", "width", "top1"],
        ["id", "repeats", "top1_sd", "macs_exact_m", "params_exact_m"],
    )
    return checked(
        (
            line,
            TrainedNetwork(_supernet_architecture(line), line.top1(), "ofa_supernet", f"line {line.number}"),
        )
        for line in lines
    )


def _supernet_architecture(line: Line) -> Architecture:
    if line.number_up_to("width", 9) != 1:
        raise line.fail(f"width must be 1, not {line.cells['width']}")
    depths, kernels, expansions = (line.wholes(name) for name in ("depths", "kernels", "expansions"))
    if len(depths) != len(_OFA_STAGES):
        raise line.fail(f"depths must name {len(_OFA_STAGES)} stages, not {len(depths)}")
    if not sum(depths) == len(kernels) == len(expansions):
        raise line.fail(
            f"depths count {sum(depths)} blocks, but there are {len(kernels)} kernels and "
            f"{len(expansions)} expansions"
        )
    blocks = [Block("inverted_residual", 3, 16, 16, 16, 1, "relu", False, False)]
    choices = iter(zip(kernels, expansions, strict=True))
    channels = 16
    try:
        for depth, (width, stride, activation, se) in zip(depths, _OFA_STAGES, strict=True):
            for number in range(depth):
                kernel, expansion = next(choices)
                blocks.append(
                    Block(
                        kind="inverted_residual",
                        kernel=kernel,
                        in_channels=channels,
                        expanded_channels=make_divisible(channels * expansion),
                        out_channels=width,
                        stride=stride if number == 0 else 1,
                        activation=activation,
                        se=se,
                    )
                )
                channels = width
        return Architecture(
            line.integer("resolution"), Stem(16, "hswish"), tuple(blocks), Head(960, 1280, "hswish")
        )
    except ArchitectureError as error:
        raise line.fail(str(error)) from None


def read_extra(path: Path, recipes: Iterable[str] | None, target: str) -> list[TrainedNetwork]:
    """Networks measured by the user; the columns are explained in ``conf/accuracy/imagenet.yaml``.

    Args:
        path: the file.
        recipes: names that a line may give; None for any.
        target: recipe of a line that gives none.

    Raises:
        AccuracyDataError: on a bad line, and for too many.
    """
    lines = read_lines(path, ["architecture", "top1"], ["resolution", "recipe"])
    if len(lines) > _MOST_EXTRA:
        raise AccuracyDataError(
            f"{path} holds {len(lines):,} networks, at most {_MOST_EXTRA:,} can be learnt from: keep those "
            "that are most like what you search for"
        )
    known = None if recipes is None else list(recipes)

    def read(line: Line) -> TrainedNetwork:
        name = line.cells["architecture"].strip()
        architecture = _own(line, name) if name.endswith((".yaml", ".yml")) else _reference(line, name)
        if reason := not_covered(architecture):
            raise line.fail(reason)
        try:
            recipe = line.cells.get("recipe", "").strip() or target
            recipe = recipe if known is None else checked_recipe(recipe, known)
        except RecipeError as error:
            raise line.fail(str(error)) from None
        return TrainedNetwork(architecture, line.top1(), recipe, name)

    return checked((line, read(line)) for line in lines)


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
