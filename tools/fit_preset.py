"""``python -m tools.fit_preset blocks=CSV``: fit the shipped estimate of a board from block latencies.

Prints the cross-validated error and rewrites the coefficients in ``nas/latency/presets/``. The CSV is the
per-block form of HW-NAS-Bench's FBNet latencies: ``in_channels, out_channels, stride, in_resolution,
expansion, kernel, groups, latency_ms_minus_skip, skip_is_identity``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from nas.command import command
from nas.console import console, print_summary
from nas.cost import cost
from nas.latency import preset
from nas.latency.preset import BlockMeasurement, EstimatedLayers, EstimateError, fit_coefficients
from nas.layers import LayerKey, layer_keys
from search_spaces.architecture import Block
from search_spaces.references import FAMILIES, reference

_SHIPPED = Path(preset.__file__).parent / "presets" / "rpi4.json"

# A Cortex-A72 issues one 128-bit fused multiply-add a cycle (Arm, Cortex-A72 Software Optimization
# Guide): 4 fp32 MACs at the Pi 4's 1.5 GHz.
_PEAK_GMACS_PER_S = 6.0

_DETAILS: dict[str, Any] = {
    "board": "Raspberry Pi 4 Model B",
    "threads": 1,
    "precision": "fp32",
    "runtime": "TF-Lite",
    "source": (
        "FBNet block latencies on a Raspberry Pi 4 (HW-NAS-Bench, GATECH-EIC/HW-NAS-Bench, as shipped by "
        "HayeonLee/HELP), recovered from network sums; arXiv 2103.10584, 2106.08630"
    ),
    "licence": "MIT (both sources); these coefficients are our own fit",
    "caveats": [
        "measured in a network of 32x32 images; larger feature maps are extrapolated",
        "the source does not state the number of threads: one is assumed, and agrees with the core's peak",
        "SE and h-swish are not in the data: their bytes are charged at the fitted rate of weight bytes",
        "rows relative to a strided or widening skip use the skip's 1x1 convolution as the fit charges it",
        "every block is charged the residual addition; blocks with a channel shuffle are left out",
    ],
}


@dataclass
class FitConfig:
    """Everything ``python -m tools.fit_preset`` can be told.

    Attributes:
        blocks: the CSV.
        output: file of the coefficients, null for the shipped one.
    """

    blocks: str = MISSING
    output: str | None = None


def read_blocks(path: Path) -> list[BlockMeasurement]:
    """The distinct blocks of the space's kind (no groups) in a CSV of FBNet block latencies.

    Raises:
        EstimateError: naming the line that cannot be read.
    """
    try:
        with path.open(newline="") as file:
            return list(dict.fromkeys(_blocks(path, csv.DictReader(file))))
    except OSError as error:
        raise EstimateError(f"cannot read {path}: {error.strerror}") from None


def _blocks(path: Path, reader: csv.DictReader[str]) -> Iterator[BlockMeasurement]:
    for line, row in enumerate(reader, start=2):
        try:
            size, channels, out = (
                int(row[name]) for name in ("in_resolution", "in_channels", "out_channels")
            )
            stride, expansion, kernel = (int(row[name]) for name in ("stride", "expansion", "kernel"))
            latency_ms = float(row["latency_ms_minus_skip"])
            identity, groups = row["skip_is_identity"] == "True", int(row["groups"])
        except (KeyError, TypeError, ValueError) as error:
            raise EstimateError(f"{path}, line {line}: {error!r}") from None
        if groups != 1:
            continue
        block = Block("inverted_residual", kernel, channels, channels * expansion, out, stride, "relu")
        skip = Block("skip", 1, channels, channels, out, stride, "relu", False, False)
        yield BlockMeasurement(
            LayerKey(size, channels, block), None if identity else LayerKey(size, channels, skip), latency_ms
        )


def fit(blocks: list[BlockMeasurement]) -> EstimatedLayers:
    """The estimate of the Raspberry Pi 4 with its cross-validated error."""
    coefficients, errors = fit_coefficients(blocks, _PEAK_GMACS_PER_S)
    absolute = 100 * np.abs(errors)
    validation = {
        "left_out": "every block of one input size and channels at a time",
        "blocks": len(blocks),
        "mean_absolute_percent": round(float(absolute.mean()), 1),
        "median_absolute_percent": round(float(np.median(absolute)), 1),
        "bias_percent": round(100 * float(errors.mean()), 1),
        "worst_percent": round(float(absolute.max()), 1),
    }
    return EstimatedLayers("rpi4", coefficients, _DETAILS | {"cross_validation": validation})


def main(config: FitConfig) -> None:
    """Fit, print the error, write the coefficients."""
    estimate = fit(read_blocks(Path(config.blocks)))
    output = Path(config.output) if config.output else _SHIPPED
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(estimate.to_json(), encoding="utf-8")
    console.print_json(estimate.to_json())
    error = estimate.details["cross_validation"]
    rows = {
        "blocks": f"{error['blocks']:,}",
        "left out": f"{error['mean_absolute_percent']} % mean error, bias {error['bias_percent']} %",
    }
    for name in FAMILIES:
        network = reference(name)
        latency_ms = sum(estimate.layer_ms(key) for key in layer_keys(network))
        rows[name] = f"{latency_ms:.1f} ms (estimated), {cost(network).macs / 1e6:.0f} M MACs"
    rows["file"] = str(output)
    print_summary(f"estimate of {estimate.device}", rows, f"python -m nas.search hardware={estimate.device}")


if __name__ == "__main__":
    command("fit_preset", FitConfig, main)
