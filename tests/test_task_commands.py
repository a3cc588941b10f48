"""``nas.export``, ``nas.compare`` and ``nas.search`` for segmentation and detection."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from safetensors.torch import save_file

from nas.backbones import raw_outputs, task_model
from nas.latency.table import LatencyTable
from nas.network import Network
from nas.page.reading import read_study, report_of
from search_spaces.references import reference
from search_spaces.tasks import Task
from tests.cases import Run, refused

SMALL = reference("mobilenet_v3_small_050", 64)


@pytest.mark.parametrize("name", ["segmentation", "detection"])
def test_a_trained_model_is_written_with_all_its_weights(run: Run, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = task_model(Network(SMALL), Task(name, 4))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for _ in range(5):
            raw_outputs(model.train(), images)
        wanted = raw_outputs(model.eval(), images)
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "small.yaml").write_text(SMALL.to_yaml())
    # Its number of classes is that of the weights.
    asked = ["export.architecture=small.yaml", f"export.task={name}"]
    outcome = run("export", *asked, "export.weights=net.safetensors", "export.batch=2")
    assert outcome.code == 0, outcome
    assert "random:" not in outcome.out
    assert "of PyTorch's largest output" in outcome.out
    path = tmp_path / f"small-{name}.onnx"
    notes = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert json.loads(notes["task"]) == {"name": name, "classes": 4}
    session = onnxruntime.InferenceSession(path)
    for output, tensor in wanted.items():
        (found,) = session.run([output], {"input": images.numpy()})
        np.testing.assert_allclose(found, tensor.numpy(), atol=1e-4, rtol=1e-3)


def test_weights_of_another_head_are_one_line(run: Run, tmp_path: Path) -> None:
    save_file(task_model(Network(SMALL), Task("detection", 3)).state_dict(), tmp_path / "net.safetensors")
    asked = ["export.architecture=mobilenet_v3_small_050", "export.resolution=64"]
    asked += ["export.task=detection", "export.weights=net.safetensors"]
    outcome = run("export", *asked, "export.task_classes=4")
    refused(outcome, "task_classes=4, but the head in net.safetensors has 3 classes")
    outcome = run("export", *asked, "export.task=segmentation")
    refused(outcome, "does not hold the weights")


@pytest.mark.slow
def test_weights_of_the_network_alone_leave_the_head_random(run: Run, tmp_path: Path) -> None:
    save_file(Network(SMALL).state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "small.yaml").write_text(SMALL.to_yaml())
    asked = ["export.architecture=small.yaml", "export.task=segmentation", "export.resolution=96"]
    outcome = run("export", *asked, "export.weights=net.safetensors")
    assert outcome.code == 0, outcome
    assert "net.safetensors; those of the head are random" in outcome.out
    assert "3 x 96 x 96" in outcome.out
    outcome = run("export", *asked, "export.task=detection", "export.task_classes=3")
    assert outcome.code == 0, outcome
    # Another network's.
    save_file(Network(reference("mobilenet_v2_035", 64)).state_dict(), tmp_path / "net.safetensors")
    outcome = run("export", *asked, "export.weights=net.safetensors", "export.overwrite=true")
    refused(outcome, "does not hold the weights of this network")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["export.task=detecton"], "did you mean detection?"),
        (["export.task=segmentation", "export.resolution=32"], "at least 64 px"),
        (["export.task=segmentation", "export.precision=int8"], "precision=int8 does not go with"),
        (["export.task=detection", "export.batch=dynamic"], "batch=dynamic does not go with"),
        (["export.task=detection", "export.task_classes=1"], "at least 2"),
        (["export.task_classes=4"], "goes with export.task=segmentation or detection"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    run: Run, tmp_path: Path, arguments: list[str], part: str
) -> None:
    outcome = run("export", "export.architecture=mobilenet_v3_small", *arguments)
    refused(outcome, part)
    assert not list(tmp_path.iterdir())


def test_whole_models_are_timed(run: Run, tmp_path: Path) -> None:
    timed = ["compare.networks=[mobilenet_v3_small_050]", "compare.resolution=64", "compare.rounds=4"]
    outcome = run("compare", *timed, "compare.runtimes=[onnxruntime]", "compare.task=detection")
    assert outcome.code == 0, outcome
    assert "the whole model for detection (91 classes)" in outcome.out
    assert (tmp_path / "results/compare/deployments.csv").read_text().count("\n") == 2
    outcome = run("compare", *timed, "compare.runtimes=[litert]", "compare.task=detection")
    refused(outcome, "runs no networks for detection here")


SPACE = {
    "name": "tapped",
    "resolutions": [64],
    "stems": [{"channels": 8}],
    "stages": [
        {"stride": 2, "depths": [1], "widths": [8, 16], "expansions": [2]},
        {"stride": 2, "depths": [1, 2], "widths": [16], "expansions": [2]},
        {"stride": 2, "depths": [1], "widths": [24, 48], "expansions": [2], "kernels": [3, 5]},
        {"stride": 2, "depths": [1], "widths": [32, 64], "expansions": [2, 4]},
    ],
    "heads": [{"conv_channels": 64}, {"conv_channels": 256}],
}
QUICK = [
    "search_space=space.yaml",
    "accuracy=train",
    "dataset=synthetic",
    "dataset.resolutions=[64]",
    "accuracy.epochs=1",
    "accuracy.threads=1",
    "search.references=[mobilenet_v3_small_050]",
    "search.trials=3",
    "profile.max_keys=40",
    "profile.networks=8",
    "profile.rounds=4",
]


@pytest.mark.slow
def test_a_search_counts_the_head(run: Run, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    asked = ["search", *QUICK, "search.task=segmentation", "search.budget_ms=mobilenet_v3_small_050"]
    outcome = run(*asked, "study.name=dense")
    assert outcome.code == 0, outcome
    assert "accuracies are of classification, a proxy for segmentation" in outcome.out
    assert "export.task=segmentation" in outcome.out
    folder = tmp_path / "results" / "dense"
    study = read_study(folder)
    assert study.user_attrs["provenance"]["task"]["name"] == "segmentation"
    (path, *_) = (folder / "architectures").glob("*.yaml")
    assert "of the whole model for segmentation" in path.read_text()
    summary = (folder / "summary.md").read_text()
    assert "whole models for segmentation (21 classes)" in summary
    report = report_of(study, importances=False)
    table = LatencyTable.from_files(study.user_attrs["latency_table"], "study")
    assert table.header.head is not None
    assert report.references[0].latency_source == "measured"
    network = report.references[0].architecture
    assert network is not None
    alone = table.with_entries({}, head=None)
    assert table.latency(network).latency_ms != alone.latency(network).latency_ms
    # Whole models are timed once for a table; a study keeps to its task.
    outcome = run(*asked, "study.name=dense2")
    assert outcome.code == 0, outcome
    assert "timing 4" not in outcome.out
    outcome = run(*asked, "study.name=dense", "search.trials=4")
    assert outcome.code == 0, outcome
    outcome = run(*asked, "study.name=dense", "search.task=classification")
    refused(outcome, "was begun with search.task=segmentation of 21 classes")
    outcome = run(*asked, "study.name=dense", "search.task_classes=3")
    refused(outcome, "was begun with search.task=segmentation of 21 classes")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["search.task=segmentaton"], "did you mean segmentation?"),
        (["search.task=detection", "search_space.resolutions=[32,64]"], "at least 64 px"),
        (["search.task=detection", "runtime=litert"], "use runtime=onnxruntime or runtime=openvino"),
        (["search.task=detection", "hardware=rpi4"], "hardware=host or a board over SSH"),
        (["search.task=detection", "search.references=[torchvision:resnet18]"], "timed as a classifier"),
        (["search.task=detection", "search.train_best=2"], "search.train_best trains classifiers"),
        (["search.task_classes=3"], "goes with search.task=segmentation or detection"),
    ],
)
def test_what_cannot_be_searched_for_is_one_line(
    run: Run, tmp_path: Path, arguments: list[str], part: str
) -> None:
    outcome = run("search", "search.trials=2", *arguments)
    refused(outcome, part)
    assert not list(tmp_path.iterdir())
