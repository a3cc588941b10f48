"""Architectures as block tables: the rows the MobileNet papers print, as frozen data.

Nothing here knows about torch: an architecture can be written, read, compared and drawn on a
machine that has nothing but Python and PyYAML.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import yaml

from search_spaces.blocks import BLOCKS, ArchitectureError, Block, Head, Stem, check_positive
from search_spaces.gate import MAX_YAML_BYTES, Gate, made
from search_spaces.ops import Conv, Linear, Pool, convolutions, halve, peak_values, side_after

_Row = TypeVar("_Row")
# Far beyond every network one deploys, and small enough that nothing here loops or allocates for long.
MAX_CLASSES = 1_000_000
MAX_RESOLUTION = 8_192
MAX_ROWS = 500
MAX_PARAMETERS = 500_000_000
MAX_PEAK_VALUES = 1_000_000_000
_LATER_FIELDS = frozenset({"se_channels", "start_kernel", "hidden_norm"})
PAPER_COLUMNS = ("Input", "Operator", "exp size", "#out", "SE", "NL", "s")
_PAPER_ACTIVATION = {"relu": "RE", "relu6": "R6", "hswish": "HS", "swish": "SW"}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A whole network: resolution, stem, rows, head, classes. Frozen, hashable, self-checking.

    Raises:
        ArchitectureError: if the channels of consecutive rows do not fit, naming the row.
    """

    resolution: int
    stem: Stem
    blocks: tuple[Block, ...]
    head: Head
    classes: int = 1000

    def __post_init__(self) -> None:
        check_positive("architecture", MAX_RESOLUTION, resolution=self.resolution)
        check_positive("architecture", MAX_CLASSES, classes=self.classes)
        if len(self.blocks) > MAX_ROWS:
            raise ArchitectureError(f"architecture: {len(self.blocks):,} rows, at most {MAX_ROWS}")
        channels = self.stem.channels
        for number, block in enumerate(self.blocks, start=1):
            if block.in_channels != channels:
                source = "the stem" if number == 1 else f"row {number - 1}"
                raise ArchitectureError(
                    f"row {number}: takes {block.in_channels} channels, but {source} gives {channels}"
                )
            channels = block.out_channels

    @property
    def out_channels(self) -> int:
        """Channels of the last feature map before the head."""
        return self.blocks[-1].out_channels if self.blocks else self.stem.channels

    @property
    def id(self) -> str:
        """Ten hexadecimal digits that depend on the table alone, the same on every machine."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:10]

    def sizes(self) -> tuple[int, ...]:
        """Side in pixels of the input of each row, and of the head at the end (len = rows + 1)."""
        size = halve(self.resolution)
        result = [size]
        for block in self.blocks:
            size = side_after(size, block.stride)
            result.append(size)
        return tuple(result)

    def to_dict(self) -> dict[str, object]:
        """Plain types only; the inverse of :meth:`from_dict`."""
        return {
            "resolution": self.resolution,
            "classes": self.classes,
            "stem": _plain(self.stem),
            "blocks": [_plain(block) for block in self.blocks],
            "head": _plain(self.head),
        }

    @classmethod
    def from_dict(cls, data: object) -> Architecture:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ArchitectureError: on a missing or unknown field, a wrong value or a broken chain.
        """
        data = check_fields("architecture", cls, data)
        rows = data["blocks"]
        if not isinstance(rows, list | tuple) or len(rows) > MAX_ROWS:
            raise ArchitectureError(f"architecture: blocks must be a list of at most {MAX_ROWS} rows")
        blocks = []
        for number, row in enumerate(rows, start=1):
            try:
                blocks.append(_from_fields("block", Block, row))
            except ArchitectureError as error:
                raise ArchitectureError(f"row {number}: {error}") from None
        stem, head = _from_fields("stem", Stem, data["stem"]), _from_fields("head", Head, data["head"])
        found = made(cls, {**data, "stem": stem, "blocks": tuple(blocks), "head": head})
        found._check_extent()
        return found

    def _check_extent(self) -> None:
        """Refuse a network that takes more memory than any mobile one, within the limits of its parts."""
        parts = [self.stem.operators(self.resolution)]
        parts += [row.operators(size) for row, size in zip(self.blocks, self.sizes(), strict=False)]
        parts.append(self.head.operators(self.sizes()[-1], self.out_channels, self.classes))
        counts = {
            "parameters": (
                sum(each.parameters for part in parts for each in convolutions(part)),
                MAX_PARAMETERS,
            ),
            "values of feature maps at once": (max(map(peak_values, parts)), MAX_PEAK_VALUES),
        }
        for what, (count, most) in counts.items():
            if count > most:
                raise ArchitectureError(f"architecture: {count:,} {what}, at most {most:,}")

    def to_yaml(self) -> str:
        """A YAML document with one table row a line."""
        lines = [f"resolution: {self.resolution}", f"classes: {self.classes}"]
        lines += [f"stem: {_flow(self.stem)}", f"head: {_flow(self.head)}"]
        lines += ["blocks:" if self.blocks else "blocks: []"]
        lines += [f"- {_flow(row)}" for row in self.blocks]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_file(cls, path: Path) -> Architecture:
        """Read a file that :meth:`to_yaml` gave the text of.

        Raises:
            ArchitectureError: if it cannot be read, is no YAML or no architecture; names the file.
        """
        gate = Gate(str(path), ArchitectureError)
        data = gate.yaml(gate.text(path, MAX_YAML_BYTES))
        try:
            return cls.from_dict(data)
        except ArchitectureError as error:
            raise ArchitectureError(f"{path}: {error}") from None

    @classmethod
    def from_yaml(cls, text: str) -> Architecture:
        """Read what :meth:`to_yaml` wrote.

        Raises:
            ArchitectureError: if the text is no YAML or no architecture.
        """
        return cls.from_dict(Gate("the architecture", ArchitectureError).yaml(text))

    def paper_rows(self) -> list[tuple[tuple[str, ...], ...]]:
        """The table as the MobileNetV3 paper prints it (Tables 1 and 2), cells as in :data:`PAPER_COLUMNS`.

        Returns:
            For the stem, each block and the head: its printed rows, one for all but the head.
        """
        sizes = self.sizes()
        return [
            (_stem_row(self.stem, self.resolution),),
            *((_block_row(block, size),) for block, size in zip(self.blocks, sizes, strict=False)),
            _head_rows(self.head, sizes[-1], self.out_channels, self.classes),
        ]

    def to_markdown(self) -> str:
        """The table as the MobileNetV3 paper prints it (Tables 1 and 2)."""
        lines = [f"| {' | '.join(PAPER_COLUMNS)} |", "|" + "---|" * len(PAPER_COLUMNS)]
        lines += [f"| {' | '.join(row)} |" for part in self.paper_rows() for row in part]
        return "\n".join(lines) + "\n"


def _row(size: int, channels: int, operator: str, *cells: object) -> tuple[str, ...]:
    return (f"{size}² × {channels}", operator, *(str(cell) for cell in cells))


def _stem_row(stem: Stem, size: int) -> tuple[str, ...]:
    activation = _PAPER_ACTIVATION[stem.activation]
    return _row(size, 3, f"conv2d, {stem.kernel}×{stem.kernel}", "–", stem.channels, "–", activation, 2)


# A page prints thousands of networks of few different layers.
@lru_cache(maxsize=20_000)
def _block_row(block: Block, size: int) -> tuple[str, ...]:
    kind = BLOCKS[block.kind]
    cells = (
        block.expanded_channels if kind.may_expand else "–",
        block.out_channels,
        "✓" if block.se else "–",
        "–" if kind.bare else _PAPER_ACTIVATION[block.activation],
        block.stride,
    )
    title = "identity" if block.is_identity else kind.printed(block)
    return _row(size, block.in_channels, title, *cells)


@lru_cache(maxsize=20_000)
def _head_rows(head: Head, size: int, in_channels: int, classes: int) -> tuple[tuple[str, ...], ...]:
    rows = []
    for operator in head.operators(size, in_channels, classes):
        if isinstance(operator, Conv):
            title = "linear" if isinstance(operator, Linear) else "conv2d, 1×1"
            activation = _PAPER_ACTIVATION.get(str(operator.activation), "–")
            channels, out = operator.in_channels, operator.out_channels
        else:
            assert isinstance(operator, Pool)
            title, activation = f"pool, {operator.size}×{operator.size}", "–"
            channels = out = operator.channels
        rows.append(_row(operator.size, channels, title, "–", out, "–", activation, 1))
    return tuple(rows)


def _plain(part: Stem | Block | Head) -> dict[str, object]:
    # Nothing in a part is nested; dataclasses.asdict copies every value and takes ten times as long.
    plain = {name: getattr(part, name) for name in part.__slots__}
    # Fields that came later are left out where they say nothing: ids of older tables stay what they are.
    return {name: value for name, value in plain.items() if value or name not in _LATER_FIELDS}


def _flow(part: Stem | Block | Head) -> str:
    # A front of hundreds has thousands of rows: in Python they take seconds.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(_plain(part), Dumper=dumper, default_flow_style=True, sort_keys=False, width=10_000)
    return text.strip()


def _from_fields(where: str, cls: type[_Row], data: object) -> _Row:
    return made(cls, check_fields(where, cls, data))


def check_fields(where: str, cls: type, data: object) -> Mapping[str, object]:
    """A mapping whose fields are those of the dataclass ``cls``.

    Raises:
        ArchitectureError: naming the field that is unknown or missing.
    """
    if not isinstance(data, Mapping):
        raise ArchitectureError(f"{where}: expected a mapping of fields, not {type(data).__name__}")
    known = fields(cls)
    names = [field.name for field in known]
    unknown = [name for name in data if name not in names]
    if unknown:
        raise ArchitectureError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(names)}")
    for field in known:
        required = field.default is MISSING and field.default_factory is MISSING
        if required and field.name not in data:
            raise ArchitectureError(f"{where}: field {field.name!r} is missing")
    return data
