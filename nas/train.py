"""``python -m nas.train``: train one network to the end, e.g. one that a search has found."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from nas import data
from nas.assembly import dataset_settings
from nas.command import command
from nas.console import console, print_summary
from nas.cost import cost
from nas.finish import finish
from nas.model_card import bundle
from nas.saving import check_apart, check_folder, check_output
from nas.settings import DatasetConfig, FinalTrainSettings
from nas.shell import shell_line
from nas.tensors import write_tensors
from nas.training.bundle import holds_bundle
from nas.training.pretrained import holds_network, table_note
from nas.training.processes import joined
from search_spaces.architecture import Architecture
from search_spaces.references import is_reference, reference


@dataclass
class FinalTrainConfig:
    """Everything ``python -m nas.train`` can be told."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    train: FinalTrainSettings = field(default_factory=FinalTrainSettings)


def main(config: FinalTrainConfig) -> None:
    """Read the images, train or go on training, judge, write the weights."""
    settings = config.train
    torch.set_num_threads(settings.threads)
    images = dataset_settings(config.dataset)
    checkpoint = Path(settings.checkpoint)
    output, bundled = Path(settings.output), Path(settings.bundle) if settings.bundle else None
    check_apart({"train.checkpoint": checkpoint, "train.output": output, "train.bundle": bundled})
    goes_on = checkpoint.exists()
    if bundled:
        # A training that goes on may have written its bundle already.
        check_folder(bundled, "train.bundle", goes_on and holds_bundle(bundled))
    architecture = _architecture(settings)
    # The same command goes on with what it has written before, and replaces nothing else.
    size_bytes = 4 * cost(architecture).parameters
    check_output(checkpoint, "train.checkpoint", overwrite=True, size_bytes=2 * size_bytes)
    check_output(output, "train.output", goes_on and holds_network(output), size_bytes)
    with joined(settings.device) as processes:
        if processes.is_first:
            console.print(data.check(images))
        architecture = replace(architecture, classes=data.class_count(images))
        finished = finish(architecture, images, settings, checkpoint, processes, "training")
    if finished is None:
        return
    rows = dict(finished.rows)
    notes = {
        **finished.split.recognition.notes(),
        "dataset": json.dumps(images.to_dict(), ensure_ascii=False),
        **table_note(architecture),
    }
    write_tensors(output, finished.network.state_dict(), notes)
    rows["weights"] = str(output)
    if bundled:
        rows |= bundle(bundled, finished, title=Path(settings.architecture).stem)
    following = shell_line(
        "nas.export", export__architecture=settings.architecture, export__weights=str(output)
    )
    print_summary(f"{architecture.id} trained", rows, following)


def _architecture(settings: FinalTrainSettings) -> Architecture:
    name = settings.architecture
    found = reference(name) if is_reference(name) else Architecture.from_file(Path(name))
    return found if settings.resolution is None else replace(found, resolution=settings.resolution)


if __name__ == "__main__":
    command("train", FinalTrainConfig, main)
