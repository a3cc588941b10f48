"""``nas.export``, ``nas.compare`` and ``nas.search`` for segmentation and detection."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from safetensors.torch import save_file

from nas.backbones import raw_outputs, task_model
from nas.command import command
from nas.latency.table import LatencyTable
from nas.network import Network
from nas.page.report import read_study, report_of
from search_spaces.references import reference
from search_spaces.tasks import Task

Run = Callable[..., tuple[int, str, str]]
SMALL = reference("mobilenet_v3_small_050", 64)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs ``python -m nas.<name>`` in this process, in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")

    def run_command(name: str, *arguments: str) -> tuple[int, str, str]:
        module = importlib.import_module(f"nas.{name}")
        monkeypatch.setattr(sys, "argv", [f"nas.{name}", *arguments])
        capfd.readouterr()
        try:
            command(name, getattr(module, f"{name.capitalize()}Config"), module.main)
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        return (code, *capfd.readouterr())

    return run_command


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
    code, out, err = run("export", *asked, "export.weights=net.safetensors", "export.batch=2")
    assert code == 0, err
    assert "random:" not in out
    assert "of PyTorch's largest output" in out
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
    code, _, err = run("export", *asked, "export.task_classes=4")
    assert (code, "task_classes=4, but the head in net.safetensors has 3 classes" in err) == (2, True)
    code, _, err = run("export", *asked, "export.task=segmentation")
    assert (code, "does not hold the weights" in err) == (2, True)


@pytest.mark.slow
def test_weights_of_the_network_alone_leave_the_head_random(run: Run, tmp_path: Path) -> None:
    save_file(Network(SMALL).state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "small.yaml").write_text(SMALL.to_yaml())
    asked = ["export.architecture=small.yaml", "export.task=segmentation", "export.resolution=96"]
    code, out, err = run("export", *asked, "export.weights=net.safetensors")
    assert code == 0, err
    assert "net.safetensors; those of the head are random" in out
    assert "3 x 96 x 96" in out
    code, _, err = run("export", *asked, "export.task=detection", "export.task_classes=3")
    assert code == 0, err
    # Another network's.
    save_file(Network(reference("mobilenet_v2_035", 64)).state_dict(), tmp_path / "net.safetensors")
    code, _, err = run("export", *asked, "export.weights=net.safetensors", "export.overwrite=true")
    assert (code, "does not hold the weights of this network" in err) == (2, True)


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
    code, _, err = run("export", "export.architecture=mobilenet_v3_small", *arguments)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert err.startswith("error: ")
    assert part in err
    assert not list(tmp_path.iterdir())


def test_whole_models_are_timed(run: Run, tmp_path: Path) -> None:
    timed = ["compare.networks=[mobilenet_v3_small_050]", "compare.resolution=64", "compare.rounds=4"]
    code, out, err = run("compare", *timed, "compare.runtimes=[onnxruntime]", "compare.task=detection")
    assert code == 0, err
    assert "the whole model for detection (91 classes)" in out
    assert (tmp_path / "results/compare/deployments.csv").read_text().count("\n") == 2
    code, _, err = run("compare", *timed, "compare.runtimes=[litert]", "compare.task=detection")
    assert (code, "runs no networks for detection here" in err) == (2, True)


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
    code, out, err = run(*asked, "study.name=dense")
    assert code == 0, err
    assert "accuracies are of classification, a proxy for segmentation" in out
    assert "export.task=segmentation" in out
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
    code, out, err = run(*asked, "study.name=dense2")
    assert (code, "timing 4" in out) == (0, False), err
    code, out, err = run(*asked, "study.name=dense", "search.trials=4")
    assert code == 0, err
    code, _, err = run(*asked, "study.name=dense", "search.task=classification")
    assert (code, "was begun with search.task=segmentation of 21 classes" in err) == (2, True)
    code, _, err = run(*asked, "study.name=dense", "search.task_classes=3")
    assert (code, "was begun with search.task=segmentation of 21 classes" in err) == (2, True)


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
    code, _, err = run("search", "search.trials=2", *arguments)
    assert (code, len(err.strip().splitlines())) == (2, 1), err
    assert part in err
    assert not list(tmp_path.iterdir())
