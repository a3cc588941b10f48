"""What people really have in their folders, through the commands."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml

from nas.pictures.folders import read_folder
from search_spaces.references import reference
from tests.cases import Run, refused
from tests.pictures.shapes import folder

PICTURES = ("accuracy=train", "dataset=imagefolder", "dataset.root=pictures")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["dataset.limit=0"], ["dataset.limit must be at least 1"]),
        (["dataset.limit=-1"], ["dataset.limit must be at least 1"]),
        (["dataset.limit=1"], ["dataset.limit=1", "circle, square, triangle"]),
        (["dataset.validation_share=0.8"], ["dataset.validation_share=0.8", "class circle"]),
        (["dataset.workers=-1"], ["dataset.workers"]),
        (["dataset.resolutions=[]"], ["dataset.resolutions is empty"]),
        (["dataset.resolutions=[1]"], ["dataset.resolutions must be at least 8"]),
        (["dataset.resolutions=[-32]"], ["dataset.resolutions must be at least 8"]),
    ],
)
def test_settings_are_refused_before_anything_is_measured(
    run: Run,
    tmp_path: Path,
    arguments: list[str],
    parts: list[str],
) -> None:
    folder(tmp_path / "pictures", count=2)
    refused(run("search", *PICTURES, *arguments), *parts)
    assert [each.name for each in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_named_before_anything_is_measured(
    run: Run,
    tmp_path: Path,
    content: bytes,
) -> None:
    (folder(tmp_path / "pictures") / "square" / "img003.png").write_bytes(content)
    refused(run("search", *PICTURES), "pictures/square/img003.png")
    assert [each.name for each in tmp_path.iterdir()] == ["pictures"]


def test_training_and_test_sets_are_no_classes(run: Run, tmp_path: Path) -> None:
    folder(tmp_path / "pictures" / "training_set")
    folder(tmp_path / "pictures" / "test_set", seed=1)
    refused(run("search", *PICTURES), "test_set/, training_set/", "wanted is a folder for each class")


def test_a_space_of_one_network_is_trained_reported_and_gone_on_with(run: Run, tmp_path: Path) -> None:
    stages = [{"stride": 2, "depths": [1], "widths": [width], "expansions": [3]} for width in (16, 24)]
    space = {"name": "one", "resolutions": [32], "stems": [{"channels": 8}], "stages": stages}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({**space, "heads": [{"conv_channels": 64}]}))
    folder(tmp_path / "pictures")
    chosen = [*PICTURES, "search_space=one.yaml", "dataset.resolutions=[32]", "hardware=rpi4"]
    quick = ["search.references=[]", "accuracy.epochs=1", "accuracy.threads=1", "dataset.workers=0"]
    for evaluated in (1, 0):
        outcome = run("search", *chosen, *quick, "study.name=mine")
        assert outcome.code == 0, outcome
        assert f"all networks of the space 'one' are evaluated ({evaluated} candidates" in outcome.out
    assert "pictures: 3 classes (circle, square, triangle); 18 pictures" in outcome.out
    assert len(list((tmp_path / "results/mine/architectures").glob("*.yaml"))) == 1
    assert (tmp_path / "results/mine/labels.txt").read_text() == "circle\nsquare\ntriangle\n"
    summary = (tmp_path / "results/mine/summary.md").read_text()
    assert "Judged on 6 images of 3 classes (circle, square, triangle), 33.3 % of them circle" in summary
    assert len((tmp_path / "results/mine/pareto.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "name",
    [
        "Fotos für Ü, (1) [2]",
        "${x}",
        "1e3",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("é", "日本", "a=b", "O'Brien", "#1", "{x}", "50 %", "a:b", 'say "hi"', "back\\slash",
                         "~tilde", "a;b&c|d", "true", "+plus", "tr ail ")
        ),
    ],
)  # fmt: skip
def test_any_path_works_as_typed(run: Run, tmp_path: Path, name: str) -> None:
    folder(tmp_path / name / "pictures")
    (tmp_path / name / "net.yaml").write_text(reference("mobilenet_v1_025", 32, 3).to_yaml())
    quick = ["dataset.workers=0", "accuracy.epochs=1", "accuracy.threads=1"]
    outcome = run(
        "export",
        f"export.architecture={name}/net.yaml",
        f"export.output={name}/out.onnx",
        f"dataset.root={name}/pictures",
        "dataset=imagefolder",
        "export.train=true",
        *quick,
    )
    assert outcome.code == 0, outcome
    session = onnxruntime.InferenceSession(tmp_path / name / "out.onnx")
    (scores,) = session.run(None, {"input": np.ones((1, 3, 32, 32), np.float32)})
    assert scores.shape == (1, 3)
    outcome = run(
        "export",
        f"export.architecture={name}/net.yaml",
        f"export.weights={name}/out.safetensors",
        f"export.output={name}/again.onnx",
        "export.precision=int8",
    )
    assert outcome.code == 0, outcome
    assert sorted(each.name for each in tmp_path.iterdir()) == [name]
    # A folder of that name itself.
    (tmp_path / name / "pictures").rename(tmp_path / "moved")
    chosen = ["export.architecture=mobilenet_v1_025", "dataset=imagefolder", "export.train=true"]
    outcome = run("export", *chosen, f"dataset.root={name}")
    refused(outcome, "holds 0 class folder(s)")


def test_changed_pictures_are_noticed_and_other_files_are_not(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures")
    before = read_folder(root).digest()
    (root / "notes.txt").write_text("not a picture")
    assert read_folder(root).digest() == before
    folder(root, count=7)
    assert read_folder(root).digest() != before
