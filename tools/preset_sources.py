"""Published Arm latencies, read from files: tables of blocks, and whole networks on phones and boards.

What is read, from one folder: ``note10_layers.csv`` (once-for-all's table of a Samsung Note10),
``pixel3_fbnet_blocks.csv`` and ``fbnet_raspi4_blocks.csv`` (FBNet blocks of HW-NAS-Bench, by HELP),
``published_networks.csv`` (XNNPACK, TF-Lite, Paddle-Lite, once-for-all), ``ncnn_benchmark.csv`` (ncnn's
README), and the block tables of networks that are no reference here (``imagenet_networks.jsonl``,
``ofa_specialised.jsonl``). Only one thread, fp32 arithmetic and 64-bit Armv8 are taken.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nas.accuracy.networks import BLOCK_CELLS
from nas.latency.preset import EstimateError, work
from search_spaces.architecture import Architecture
from search_spaces.blocks import Block, Head, Stem
from search_spaces.gate import Gate, JsonObject, made
from search_spaces.layers import LayerKey, layer_keys
from search_spaces.references import reference

# ncnn's V2 and V3 are not quite the papers' tables: their MACs in millions (ncnn benchmark, model files).
_NCNN_MACS_M = {"mobilenet_v2": 314.0, "mobilenet_v3": 246.0}
_NCNN_NETWORKS = {
    "mobilenet": "mobilenet_v1",
    "mobilenet_v2": "mobilenet_v2",
    "mobilenet_v3": "mobilenet_v3_large",
}


@dataclass(frozen=True, slots=True)
class Timed:
    """Something whose latency is published.

    Attributes:
        name: of the network; of a block what cross-validation leaves out together.
        work: in the order of :data:`nas.latency.preset.TERMS`.
        latency_ms: milliseconds of one inference.
    """

    name: str
    work: NDArray[np.float64]
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Group:
    """The latencies timed on one device by one runtime, which share one level.

    Attributes:
        runtime: name of the runtime.
        device: name of the device.
        ghz: clock of its core, None where the source does not say.
        rows: what was timed.
    """

    runtime: str
    device: str
    ghz: float | None
    rows: tuple[Timed, ...]


def network_work(architecture: Architecture) -> NDArray[np.float64]:
    """Work of all layers of a network, in the order of :data:`nas.latency.preset.TERMS`."""
    return np.asarray(np.sum([work(key) for key in layer_keys(architecture)], axis=0))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            yield from enumerate(csv.DictReader(file), start=2)
    except OSError as error:
        raise EstimateError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise EstimateError(f"{path} is no CSV file in UTF-8") from None


def _read(path: Path, read: Callable[[Mapping[str, str]], Timed | None]) -> list[Timed]:
    found = []
    for line, row in _rows(path):
        try:
            timed = read(row)
        except (KeyError, TypeError, ValueError) as error:
            raise EstimateError(f"{path}, line {line}: {error!r}") from None
        if timed is not None:
            if not (np.isfinite(timed.latency_ms) and timed.latency_ms > 0):
                raise EstimateError(f"{path}, line {line}: a latency must be positive, in milliseconds")
            found.append(timed)
    if not found:
        raise EstimateError(f"{path} holds no block that can be used")
    return found


def read_fbnet_blocks(path: Path) -> list[Timed]:
    """Distinct FBNet blocks without groups, each relative to its layer's skip where that is no identity.

    Args:
        path: CSV with ``in_channels, out_channels, stride, in_resolution, expansion, kernel, groups,
            latency_ms_minus_skip, skip_is_identity``.

    Raises:
        EstimateError: naming the line that cannot be read.
    """

    def read(row: Mapping[str, str]) -> Timed | None:
        size, channels, out = (int(row[name]) for name in ("in_resolution", "in_channels", "out_channels"))
        stride, expansion, kernel = (int(row[name]) for name in ("stride", "expansion", "kernel"))
        latency_ms = float(row["latency_ms_minus_skip"])
        if int(row["groups"]) != 1:  # a channel shuffle, which no space here has
            return None
        block = Block("inverted_residual", kernel, channels, channels * expansion, out, stride, "relu")
        done = work(LayerKey(size, channels, block))
        if row["skip_is_identity"] != "True":
            skip = Block("skip", 1, channels, channels, out, stride, "relu", False, False)
            done = done - work(LayerKey(size, channels, skip))
        return Timed(f"{size},{channels},{out}", done, latency_ms)

    distinct = {(each.name, *each.work, each.latency_ms): each for each in _read(path, read)}
    return list(distinct.values())


def read_note10_blocks(path: Path) -> list[Timed]:
    """Distinct blocks of once-for-all's Note10 table; the same block at several resolutions is averaged.

    Raises:
        EstimateError: naming the line that cannot be read.
    """

    def read(row: Mapping[str, str]) -> Timed | None:
        if row["op"] != "expanded_conv":
            return None
        size, channels, out, expanded, kernel, stride = (
            int(row[name])
            for name in ("in_size", "in_channels", "out_channels", "expanded", "kernel", "stride")
        )
        activation = "hswish" if row["hswish"] == "1" else "relu"
        block = Block(
            "inverted_residual",
            kernel,
            channels,
            expanded,
            out,
            stride,
            activation,  # type: ignore[arg-type]
            row["se"] == "1",
            expanded != channels,
        )
        return Timed(f"{channels},{out}", work(LayerKey(size, channels, block)), float(row["mean_ms"]))

    same: dict[tuple[object, ...], list[Timed]] = {}
    for each in _read(path, read):
        same.setdefault((each.name, *each.work), []).append(each)
    return [
        Timed(found[0].name, found[0].work, float(np.mean([each.latency_ms for each in found])))
        for found in same.values()
    ]


def read_networks(folder: Path) -> list[Group]:
    """Whole networks on Arm cores by device and runtime, at least three in each group.

    Raises:
        EstimateError: naming the file or line that cannot be read.
    """
    tables = {table["variant"]: table for table in _tables(folder / "ofa_specialised.jsonl")}
    groups: dict[tuple[str, str], list[Timed]] = {}
    clocks: dict[tuple[str, str], float | None] = {}
    for line, row in _rows(folder / "published_networks.csv"):
        once_for_all = row["network"].startswith("ofa:")
        if row["precision"] != "fp32" or (row["threads"] != "1" and not once_for_all):
            continue
        if "armv7" in row["runtime"] or "32-bit" in row["core"] or "Xeon" in row["core"]:
            continue
        try:
            if once_for_all:
                table = tables.get(row["network"].replace("ofa:", "ofa ", 1))
                if table is None:
                    continue
                network, runtime = _architecture(table), "TF-Lite (once-for-all)"
            else:
                network = reference(_own_name(row["network"]), int(row["resolution"]))
                runtime = row["runtime"]
            timed = Timed(row["network"], network_work(network), float(row["latency_ms"]))
            ghz = float(row["ghz"]) if row["ghz"] else None
        except (KeyError, TypeError, ValueError) as error:
            raise EstimateError(f"published_networks.csv, line {line}: {error!r}") from None
        key = (runtime, f"{row['device']}, {row['date']}")
        groups.setdefault(key, []).append(timed)
        clocks[key] = ghz
    for key, timed in _ncnn(folder):
        groups.setdefault(key, []).append(timed)
    return [
        Group(runtime, device, clocks.get((runtime, device)), tuple(rows))
        for (runtime, device), rows in groups.items()
        if len(rows) >= 3
    ]


def _ncnn(folder: Path) -> Iterator[tuple[tuple[str, str], Timed]]:
    networks = {name: network_work(reference(own)) for name, own in _NCNN_NETWORKS.items()}
    for name, macs_m in _NCNN_MACS_M.items():
        done = networks[name]
        networks[name] = done * macs_m / (done[0] + done[1])
    published = _tables(folder / "imagenet_networks.jsonl")
    for name, pattern in (("mnasnet", "mnasnet"), ("proxylessnasnet", "proxyless")):
        networks[name] = network_work(_architecture(_of_300m(published, pattern)))
    for _, row in _rows(folder / "ncnn_benchmark.csv"):
        wanted = (row["isa"], row["arithmetic"], row["threads"], row["precision"])
        if wanted == ("arm", "fp32", "1", "float") and row["network"] in networks:
            device = f"{row['device']}, {row['date']}, {row['commit']}, powersave {row['powersave']}"
            yield ("ncnn", device), Timed(row["network"], networks[row["network"]], float(row["min_ms"]))


_GATE = Gate("imagenet_networks.jsonl", EstimateError)
_Part = TypeVar("_Part", Stem, Block, Head)


def _of_300m(tables: Sequence[Mapping[str, object]], pattern: str) -> Mapping[str, object]:
    """The first network of a family at 224 px with the 300 to 330M MACs that ncnn's model has."""
    for table in tables:
        at_224 = pattern in str(table["name"]).lower() and table["resolution"] == 224
        if at_224 and 300 < _GATE.number("macs_exact_m", table["macs_exact_m"]) < 330:
            return table
    raise EstimateError(f"imagenet_networks.jsonl holds no {pattern} of 300 to 330M MACs at 224 px")


def _tables(path: Path) -> list[Mapping[str, object]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise EstimateError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise EstimateError(f"{path}: {error}") from None


def _architecture(table: Mapping[str, object]) -> Architecture:
    def part(cls: Callable[..., _Part], given: JsonObject) -> _Part:
        known = given["activation"] if given["activation"] in ("relu", "relu6", "hswish") else "hswish"
        return made(cls, {**given, "activation": known})

    rows = [_GATE.sequence(row, "a row") for row in _GATE.sequence(table["blocks"], "blocks")]
    # The estimates know no SE of a size of its own.
    blocks = tuple(part(Block, dict(zip(BLOCK_CELLS[:-1], row, strict=False))) for row in rows)
    stem, head = _GATE.mapping(table["stem"], "stem"), _GATE.mapping(table["head"], "head")
    stem = {name: stem[name] for name in ("channels", "kernel", "activation")}
    head = {name: head.get(name, 0) for name in ("conv_channels", "hidden_channels", "activation")}
    resolution = _GATE.integer("resolution", table["resolution"])
    return Architecture(resolution, part(Stem, stem), blocks, part(Head, head))


def _own_name(published: str) -> str:
    """This project's name of a MobileNet: ``mobilenet_v2_1.4`` is ``mobilenet_v2_140``."""
    return re.sub(
        r"_(\d)\.(\d+)", lambda found: f"_{round(100 * float(f'{found[1]}.{found[2]}')):03}", published
    )
