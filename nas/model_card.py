"""The model card of a trained network (accuracy, latency here, recipe, data), and its bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nas.accuracy.source import Judgement
from nas.accuracy.train import calibration_images, judge_quantized
from nas.console import console, measuring_progress, warn
from nas.cost import cost
from nas.data import DatasetSettings, Split
from nas.latency.deployment import measured_deployments
from nas.measuring.conditions import cpu_model
from nas.measuring.rounds import MeasurementError
from nas.network import Network
from nas.quantities import latency_text
from nas.runtimes.runtime import Runtime
from nas.settings import ROUNDS
from nas.training.bundle import FP32, INT8, Parity, write_bundle
from search_spaces.architecture import Architecture

# What a trained network is judged on.
RANKING, TEST = "images that rank candidates", "test images that ranked none"


@dataclass(frozen=True, slots=True)
class FinishedNetwork:
    """A trained network, and all there is to say of its training.

    Attributes:
        network: with the weights that are kept, in evaluation mode.
        split: images it was trained and judged on.
        images: which these are.
        recipe: how it was trained, for people.
        judged: how well it does, by what it was judged on; the last one counts.
        rows: what else there is to say, for the console.
    """

    network: Network
    split: Split
    images: DatasetSettings
    recipe: Mapping[str, object]
    judged: Mapping[str, Judgement]
    rows: Mapping[str, str] = field(default_factory=dict)


def bundle(
    folder: Path, trained: FinishedNetwork, latency: Mapping[str, str] | None = None, title: str | None = None
) -> dict[str, str]:
    """Write the bundle of a trained network.

    Args:
        folder: where to.
        trained: the network.
        latency: rows for the card; measured on this machine where None.
        title: of the card; the network's id where None.

    Returns:
        Rows for the console: where it is, and how far its files agree with PyTorch.

    Raises:
        nas.training.bundle.BundleError: if a file does not compute what the network computes.
        SaveError: if it cannot be written.
    """
    network, split = trained.network, trained.split
    architecture = network.architecture
    quantized = judge_quantized(network, split)
    counted = cost(architecture)
    described = {
        name: json.dumps(value, ensure_ascii=False)
        for name, value in trained.images.to_dict().items()
        if name != "root"
    }
    facts = {
        "Accuracy": {
            **{f"top-1, {name}": shown(each) for name, each in trained.judged.items()},
            f"top-1 in int8, {RANKING}": shown(quantized),
        },
        "Latency": dict(latency) if latency is not None else latency_rows(architecture, folder),
        "Network": {
            "parameters": f"{counted.parameters:,}",
            "multiply-accumulates": f"{counted.macs:,}",
            "input": f"1 x 3 x {architecture.resolution} x {architecture.resolution}",
        },
        "Recipe": {name: str(value) for name, value in trained.recipe.items() if value is not None},
        "Data": {
            **described,
            "training images": f"{len(split.train):,}",
            "classes": ", ".join(split.classes),
        },
    }
    parity = write_bundle(
        folder, network, split.recognition, calibration_images(split), facts, title or architecture.id
    )
    return {"bundle": str(folder), "agreement": _agreement(parity)}


def shown(judged: Judgement) -> str:
    """E.g. ``91.20 ± 0.28 % of 10,000 images``."""
    return f"{judged.top1:.2f} ± {judged.deviation:.2f} % of {judged.images:,} images"


def latency_rows(architecture: Architecture, folder: Path) -> dict[str, str]:
    """Percentiles of both ONNX files on this machine; why there are none where it did not hold still."""
    files = {FP32: Runtime(), INT8: Runtime(precision="int8")}
    try:
        networks = {architecture.id: architecture}
        with (
            measuring_progress() as bars,
            measured_deployments(networks, [*files.values()], folder, ROUNDS, 0, bars) as (timed, _),
        ):
            by_runtime = {each.runtime: each for each in timed}
    except MeasurementError as error:
        warn(f"warning: latency was not measured: {error}")
        return {"not measured": str(error)}
    console.print(f"timed on {cpu_model()}")
    return {
        "measured on": f"{cpu_model()}, ONNX Runtime, one thread, one image",
        **{
            file: f"p50 {latency_text(each.p50_ms)}, p90 {latency_text(each.p90_ms)}, "
            f"p99 {latency_text(each.p99_ms)}"
            for file, runtime in files.items()
            if (each := by_runtime.get(runtime)) is not None
        },
    }


def _agreement(parity: Mapping[str, Parity]) -> str:
    return "; ".join(f"{name} {each.same_answers:.1%}" for name, each in parity.items()) + " of answers"
