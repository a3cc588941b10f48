"""Networks with known accuracy, and the file of published ones, one JSON object a line.

A line has ``resolution``, ``top1``, ``recipe``, ``variant``, ``stem {channels, kernel}``, ``head
{conv_channels, hidden_channels}`` and ``blocks``, a list of rows ``[kind, kernel, in, expanded, out, stride,
activation, se, expansion_conv, se_channels]``; ``device`` names what a network was specialised for.
Further fields are not read. A line with ``duplicate_weights`` repeats another and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, TypeVar

from nas.accuracy.features import not_covered
from nas.accuracy.recipes import recipe_name
from search_spaces.architecture import Architecture
from search_spaces.blocks import ArchitectureError, Block, Head, Stem
from search_spaces.errors import InputError
from search_spaces.gate import Gate

# Two trainings of one network on ImageNet differ by a few tenths of a point, once by 1.2 (imgclsmob's V1).
REPEAT_TOLERANCE = 1.5
# Of a row of a block table in the data.
BLOCK_CELLS = (
    "kind",
    "kernel",
    "in_channels",
    "expanded_channels",
    "out_channels",
    "stride",
    "activation",
    "se",
    "expansion_conv",
    "se_channels",
)


class AccuracyDataError(InputError):
    """A file of accuracies that cannot be used. The message names the file, the line and the reason."""


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A network whose ImageNet top-1 is known.

    Attributes:
        architecture: the network.
        top1: percent.
        recipe: name of how it was trained, see :mod:`nas.accuracy.recipes`.
        variant: what its source calls it.
        device: what it was specialised for, empty where it was not.
    """

    architecture: Architecture
    top1: float
    recipe: str
    variant: str
    device: str = ""

    @property
    def family(self) -> str:
        """The same for all resolutions and recipes of one table: hexadecimal digits, stable as ids are."""
        return replace(self.architecture, resolution=224, classes=1000).id


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file, for messages."""

    path: Path
    number: int

    def fail(self, reason: str) -> AccuracyDataError:
        """An error that names this line."""
        return AccuracyDataError(f"{self.path}, line {self.number}: {reason}")

    def percent(self, top1: float) -> float:
        """A top-1 in percent; 100 is refused, as the logarithm of the error is what is fitted.

        Raises:
            AccuracyDataError: if it is outside, or a fraction.
        """
        if not (math.isfinite(top1) and 0 <= top1 <= 100):
            raise self.fail(f"top1 must be between 0 and 100, not {top1:g}")
        if top1 == 100:
            raise self.fail("top1 is 100, which no network reaches on ImageNet")
        if 0 < top1 <= 1:
            raise self.fail(f"top1 is {top1:g}, a fraction; give percent, {100 * top1:g}")
        return top1


def checked(pairs: Iterable[tuple[Place, TrainedNetwork]]) -> list[TrainedNetwork]:
    """The networks, unless two lines contradict each other. Repeats stay: they tell the noise.

    Raises:
        AccuracyDataError: on a contradiction, naming both lines.
    """
    seen: dict[tuple[Architecture, str], tuple[Place, float]] = {}
    networks = []
    for place, network in pairs:
        first, top1 = seen.setdefault((network.architecture, network.recipe), (place, network.top1))
        if abs(network.top1 - top1) > REPEAT_TOLERANCE:
            raise place.fail(
                f"repeats the architecture of line {first.number} with top-1 {network.top1:g}, not {top1:g}"
            )
        networks.append(network)
    return networks


def read_networks(path: Path) -> list[TrainedNetwork]:
    """The networks of a file of published ones, see the module.

    Raises:
        AccuracyDataError: on an unreadable file or a bad line.
    """
    pairs = []
    for number, line in enumerate(Gate(str(path), AccuracyDataError).text(path).splitlines(), start=1):
        if not line.strip():
            continue
        place = Place(path, number)
        gate = Gate(f"{path}, line {number}", AccuracyDataError)
        fields = gate.mapping(gate.json(line))
        if not fields.get("duplicate_weights"):
            pairs.append((place, _network(place, fields)))
    if not pairs:
        raise AccuracyDataError(f"{path} holds no networks")
    return checked(pairs)


def _network(place: Place, fields: Mapping[str, Any]) -> TrainedNetwork:
    for name, kind in _FIELDS.items():
        if name not in fields:
            raise place.fail(f"{name} is missing")
        if not isinstance(fields[name], kind) or isinstance(fields[name], bool):
            raise place.fail(f"{name} has the wrong type: {fields[name]!r}")
    try:
        architecture = Architecture(
            fields["resolution"],
            _part(Stem, "stem", fields["stem"]),
            tuple(_block(number, cells) for number, cells in enumerate(fields["blocks"], start=1)),
            _part(Head, "head", fields["head"]),
        )
    except ArchitectureError as error:
        raise place.fail(str(error)) from None
    if reason := not_covered(architecture):
        raise place.fail(reason)
    separable = all(block.kind == "depthwise_separable" for block in architecture.blocks)
    recipe = recipe_name(fields["recipe"], separable)
    top1, device = place.percent(float(fields["top1"])), fields.get("device") or ""
    return TrainedNetwork(architecture, top1, recipe, fields["variant"], str(device))


_FIELDS: dict[str, Any] = {
    "stem": dict,
    "head": dict,
    "blocks": list,
    "resolution": int,
    "top1": int | float,
    "recipe": str,
    "variant": str,
}


_Part = TypeVar("_Part", Stem, Head)


def _part(cls: type[_Part], where: str, given: Mapping[str, Any]) -> _Part:
    known = {each.name for each in fields_of(cls)}
    try:
        return cls(**{name: value for name, value in given.items() if name in known})
    except TypeError as error:
        raise ArchitectureError(f"{where}: {error}") from None


def _block(number: int, cells: object) -> Block:
    if not isinstance(cells, list) or len(cells) != len(BLOCK_CELLS):
        raise ArchitectureError(f"row {number}: must have {len(BLOCK_CELLS)} cells: {', '.join(BLOCK_CELLS)}")
    try:
        return Block(**dict(zip(BLOCK_CELLS, cells, strict=True)))
    except (ArchitectureError, TypeError) as error:
        raise ArchitectureError(f"row {number}: {error}") from None
