"""A latency table in the YAML form of once-for-all's ``MBv3LatencyTable``, for who searches with that code.

There a layer's name is its shape, and a network's latency the sum of its layers. Activation and kernel of the
stem and the gate's width are not part of a name: layers are written that are as in its MobileNetV3, others
counted. Its four last layers are one here: their latency stands at ``Conv_1``, zero at the three after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from nas.latency.table import Entry, LatencyTable, TableError
from search_spaces.blocks import Block, Head, Stem
from search_spaces.layers import LayerKey
from search_spaces.ops import halve, side_after


@dataclass(frozen=True, slots=True)
class OnceForAllTable:
    """A table in that form.

    Attributes:
        text: the YAML file: for each layer mean and standard deviation in ms, and the number of rounds.
        layers: how many layers of the table it holds.
        left_out: how many have no name there.
    """

    text: str
    layers: int
    left_out: int


def once_for_all(table: LatencyTable) -> OnceForAllTable:
    """Write a table in once-for-all's form.

    Raises:
        TableError: if the table is an estimate, or none of its layers has a name there.
    """
    if table.is_estimate:
        raise TableError(f"there is nothing measured to write; measure with: {table.profile_command}")
    found: dict[str, dict[str, float | int]] = {}
    layers = left_out = 0
    for key, entry in sorted(table.entries.items(), key=lambda pair: str(pair[0])):
        names = _names(key)
        # A head of another hidden layer or other classes would change those before it.
        if not names or names[0] in found:
            left_out += 1
            continue
        layers += 1
        found[names[0]] = _line(entry)
        for name in names[1:]:
            found[name] = {"mean": 0.0, "std": 0.0, "count": entry.samples}
    if not found:
        raise TableError(
            f"no layer of the table of {table.header.hardware} has a name in once-for-all's form"
        )
    head = (
        f"# {' '.join(table.header.title.split())}\n"
        "# For once-for-all's MBv3LatencyTable: ms for one image; count 0: predicted. Sums of layers: what\n"
        "# corrects them to whole networks has no place here. Conv_1 holds all of a network's last layers.\n"
    )
    return OnceForAllTable(head + yaml.safe_dump(found, width=10_000), layers, left_out)


def _line(entry: Entry) -> dict[str, float | int]:
    # Of a normal distribution, quartiles lie 1.349 standard deviations apart.
    deviation = entry.spread_ms / 1.349 if entry.samples else entry.spread_ms
    return {"mean": entry.latency_ms, "std": float(f"{deviation:.4g}"), "count": entry.samples}


def _names(key: LayerKey) -> list[str]:
    """Names of a layer there, and the layers of a head that follow; nothing where it has no name."""
    part, size, channels = key.part, key.size, key.in_channels
    if isinstance(part, Stem):
        if (part.kernel, part.activation) != (3, "hswish"):
            return []
        out = halve(size)
        return [f"Conv-input:{size}x{size}x3-output:{out}x{out}x{part.channels}"]
    if isinstance(part, Head):
        if part.activation != "hswish" or not part.conv_channels or not part.hidden_channels:
            return []
        if part.conv_layers != 1 or part.hidden_norm:
            return []
        wide, hidden = part.conv_channels, part.hidden_channels
        return [
            f"Conv_1-input:{size}x{size}x{channels}-output:{size}x{size}x{wide}",
            f"AvgPool2D-input:{size}x{size}x{wide}-output:1x1x{wide}",
            f"Conv_2-input:1x1x{wide}-output:1x1x{hidden}",
            f"Logits-input:1x1x{hidden}-output:{key.classes}",
        ]
    return _block_names(part, size)


def _block_names(block: Block, size: int) -> list[str]:
    plain = block.kind == "inverted_residual" and block.activation in ("relu", "hswish")
    expands = block.expanded_channels != block.in_channels
    if not plain or block.is_identity or block.se_channels or expands != block.expansion_conv:
        return []
    out = side_after(size, block.stride)
    skip = block.stride == 1 and block.in_channels == block.out_channels
    return [
        f"expanded_conv-input:{size}x{size}x{block.in_channels}-output:{out}x{out}x{block.out_channels}"
        f"-expand:{block.expanded_channels}-kernel:{block.kernel}-stride:{block.stride}"
        f"-idskip:{int(skip)}-se:{int(block.se)}-hs:{int(block.activation == 'hswish')}"
    ]
