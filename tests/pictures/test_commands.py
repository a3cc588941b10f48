"""What people really have in their folders, through the commands."""

from pathlib import Path

import pytest

from tests.pictures.shapes import folder
from tests.test_commands import Run, _refused, run  # noqa: F401 - a fixture

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
    run: Run,  # noqa: F811
    tmp_path: Path,
    arguments: list[str],
    parts: list[str],
) -> None:
    folder(tmp_path / "pictures", count=2)
    _refused(run("search", *PICTURES, *arguments), *parts)
    assert [each.name for each in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_named_before_anything_is_measured(
    run: Run,  # noqa: F811
    tmp_path: Path,
    content: bytes,
) -> None:
    (folder(tmp_path / "pictures") / "square" / "img003.png").write_bytes(content)
    _refused(run("search", *PICTURES), "pictures/square/img003.png")
    assert [each.name for each in tmp_path.iterdir()] == ["pictures"]


def test_training_and_test_sets_are_no_classes(run: Run, tmp_path: Path) -> None:  # noqa: F811
    folder(tmp_path / "pictures" / "training_set")
    folder(tmp_path / "pictures" / "test_set", seed=1)
    _refused(run("search", *PICTURES), "test_set/, training_set/", "wanted is a folder for each class")
