import os
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from nas.data import DatasetSettings, check, load
from nas.pictures.decode import PictureError, read_picture
from nas.pictures.folders import DatasetError, check_pictures, read_folder
from tests.pictures.shapes import NAMES, folder


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    found = read_folder(folder(tmp_path / "pictures"))
    assert found.classes == NAMES
    assert found.validation is None
    assert found.train.labels == (0,) * 6 + (1,) * 6 + (2,) * 6
    assert found.summary() == (
        "3 classes (circle, square, triangle); 18 pictures (in a class: min 6, median 6, max 6)"
    )


@pytest.mark.parametrize("names", [("train", "val"), ("train", "valid"), ("train", "test")])
def test_training_and_validation_folders(names: tuple[str, str], tmp_path: Path) -> None:
    folder(tmp_path / names[0], count=5)
    folder(tmp_path / names[1], count=3, seed=1)
    (tmp_path / "annotations").mkdir()
    found = read_folder(tmp_path)
    assert found.validation is not None
    assert (len(found.train), len(found.validation), found.test) == (15, 9, None)
    assert found.ignored == {"folder annotations/": 1}


def test_a_test_folder_beside_validation_is_neither_trained_on_nor_validated_with(tmp_path: Path) -> None:
    for seed, part in enumerate(("train", "val", "test")):
        folder(tmp_path / part, count=4 - seed, seed=seed)
    found = read_folder(tmp_path)
    assert found.validation is not None
    assert found.test is not None
    assert (len(found.train), len(found.validation), len(found.test)) == (12, 9, 6)
    assert "9 for validation; 6 for test" in found.summary()


def test_a_training_folder_alone_is_to_be_split(tmp_path: Path) -> None:
    folder(tmp_path / "train")
    found = read_folder(tmp_path)
    assert (found.classes, len(found.train), found.validation) == (NAMES, 18, None)


@pytest.mark.parametrize(
    "names",
    [
        ("training_set", "test_set"),
        ("Train", "Test"),
        ("train", "Test"),
        ("val", "test"),
        ("training", "validation"),
        ("TRAIN", "VALID"),
        ("seg_train", "seg_test"),
        ("train_images", "dev"),
        ("train", "val", "valid"),
        # In other languages the same class folders give them away.
        ("Trainingsdaten", "Testdaten"),
        ("fold 1", "fold 2"),
    ],
)
def test_training_and_test_sets_are_no_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    for seed, name in enumerate(names):
        folder(tmp_path / name, seed=seed)
    with pytest.raises(DatasetError) as caught:
        read_folder(tmp_path)
    assert all(f"{name}/" in str(caught.value) for name in names)
    assert "wanted is a folder for each class, or train/ and val/" in str(caught.value)


def test_parts_without_class_folders_are_no_classes(tmp_path: Path) -> None:
    folder(tmp_path, classes=("train", "test"))
    with pytest.raises(DatasetError, match=r"test/, train/: parts of a dataset, without class folders"):
        read_folder(tmp_path)


@pytest.mark.parametrize("classes", [("bus", "car", "train"), ("test_tube", "flask"), ("trainer", "val")])
def test_classes_may_be_called_as_parts(classes: tuple[str, ...], tmp_path: Path) -> None:
    folder(tmp_path, classes=classes)
    assert read_folder(tmp_path).classes == tuple(sorted(classes))


def test_classes_beside_a_training_folder_are_not_guessed_about(tmp_path: Path) -> None:
    folder(tmp_path, classes=("bus", "car"))
    folder(tmp_path / "train")
    with pytest.raises(DatasetError, match=r"holds bus/, car/, train/: which are"):
        read_folder(tmp_path)


def test_one_folder_too_high_is_said(tmp_path: Path) -> None:
    folder(tmp_path / "archive")
    with pytest.raises(DatasetError, match=r"holds 1 class folder\(s\), archive/ with circle, square"):
        read_folder(tmp_path)


def test_what_systems_and_programs_leave_behind_is_no_class_and_no_picture(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures")
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".git"):
        folder(root / name, classes=("circle",), count=1)
        folder(root / "circle" / name, classes=("circle",), count=1)
    (root / "circle" / "._img000.png").write_bytes(bytes(100))
    (root / "circle" / "Thumbs.db").write_bytes(bytes(100))
    (root / "square" / "notes.txt").write_text("")
    (root / "square" / "photo.heic").write_bytes(bytes(10))
    (root / "readme.md").write_text("")
    folder(root / "results" / "my_study", classes=("figures",))
    (root / "results" / "my_study" / "study.journal").write_text("")
    folder(root / "venv", classes=("lib",))
    (root / "venv" / "pyvenv.cfg").write_text("")
    found = read_folder(root)
    assert (found.classes, len(found.train)) == (NAMES, 18)
    assert found.ignored == {
        "hidden": 4,
        "@eaDir": 2,
        "__MACOSX": 2,
        "._ files": 1,
        "Thumbs.db": 1,
        ".txt": 1,
        ".heic (cannot be read)": 1,
        ".md": 1,
        "folder results/ (results of this program)": 1,
        "folder venv/ (a Python environment)": 1,
    }
    assert "ignored: " in found.summary()
    check_pictures(found.files)


def test_results_that_are_being_made_are_no_class(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures")
    (root / "results" / "latency" / "host-onnxruntime-fp32-1t").mkdir(parents=True)
    (root / "results" / "latency" / "host-onnxruntime-fp32-1t" / "partial-0.jsonl").write_text("")
    assert read_folder(root).classes == NAMES


def test_pictures_behind_links_are_read(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures")
    shutil.move(root / "square", tmp_path / "outside")
    (root / "square").mkdir()
    (root / "square" / "batch1").symlink_to(tmp_path / "outside")
    (root / "square" / "again").symlink_to(tmp_path / "outside")  # counted once
    shutil.move(root / "circle", tmp_path / "elsewhere")
    (root / "circle").symlink_to(tmp_path / "elsewhere")
    found = read_folder(root)
    assert (found.classes, len(found.train)) == (NAMES, 18)


def test_a_pipe_is_no_picture(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures")
    os.mkfifo(tmp_path / "pipe")
    (root / "square" / "pipe.png").symlink_to(tmp_path / "pipe")
    os.mkfifo(root / "square" / "another.png")
    found = read_folder(root)
    assert len(found.train) == 18
    assert "2 special files" in found.summary()
    with pytest.raises(PictureError, match="is no file: remove it"):
        read_picture(tmp_path / "pipe")


@pytest.mark.parametrize(("link", "target"), [("square/up", ".."), ("square/self", "."), ("up", "../..")])
def test_a_link_to_a_folder_above_is_named_and_not_followed(link: str, target: str, tmp_path: Path) -> None:
    root = folder(tmp_path / "some" / "pictures")
    (root / link).symlink_to(target)
    found = read_folder(root)
    assert (found.classes, len(found.train)) == (NAMES, 18)
    assert f"{link} leads back to a folder above it" in found.summary()


def test_links_that_lead_to_themselves_are_no_pictures(tmp_path: Path) -> None:
    pictures = folder(tmp_path / "pictures")
    for name in ("loop", "loop.png"):
        (pictures / NAMES[0] / name).symlink_to(name)
    (pictures / NAMES[0] / "gone.png").symlink_to("nothing")
    found = read_folder(pictures, skip_unreadable=True)
    assert (len(found.train), found.ignored) == (18, {"without ending": 1})
    assert "gone.png" in found.summary()
    with pytest.raises(PictureError, match="is a link to nothing"):
        check_pictures(read_folder(pictures).files)


def test_folders_in_folders_in_folders_end_in_a_line(tmp_path: Path) -> None:
    pictures = folder(tmp_path / "pictures")
    (pictures / NAMES[0] / Path(*["d"] * 100)).mkdir(parents=True)
    with pytest.raises(DatasetError, match="more than 64 folders deep"):
        read_folder(pictures)


def test_a_class_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    pictures = folder(tmp_path / "pictures")
    (pictures / NAMES[0]).rename(pictures / os.fsdecode(b"caf\xe9"))
    with pytest.raises(DatasetError, match="is no text in UTF-8: rename it"):
        read_folder(pictures)


def test_a_folder_that_is_called_as_a_picture_is_a_folder(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures")
    shutil.move(root / "circle", root / "other")
    (root / "circle").mkdir()
    shutil.move(root / "other", root / "circle" / "x.png")
    assert len(read_folder(root).train) == 18


def test_an_empty_class_says_what_it_holds_instead(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures")
    (root / "oval").mkdir()
    (root / "oval" / "a.heic").write_bytes(b"")
    with pytest.raises(
        DatasetError, match=r"the class folder .*/oval holds no image .*\(1 \.heic \(cannot be read\)\)"
    ):
        read_folder(root)


def test_both_spellings_of_a_name_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD"))
    folder(tmp_path / "train", classes=("Brot", composed))
    folder(tmp_path / "val", classes=("Brot", decomposed), seed=1)
    found = read_folder(tmp_path)
    assert found.classes == ("Brot", composed)
    folder(tmp_path / "train", classes=("Brot", decomposed), seed=2)
    assert len(read_folder(tmp_path).train) == 18


def test_classes_that_a_part_lacks_are_named(tmp_path: Path) -> None:
    folder(tmp_path / "train")
    folder(tmp_path / "val", classes=NAMES[:2], seed=1)
    with pytest.raises(DatasetError, match=r"val does not have the same class folders .* lacks triangle"):
        read_folder(tmp_path)
    folder(tmp_path / "val", classes=(*NAMES, "oval"), seed=1)
    with pytest.raises(DatasetError, match="it has oval too"):
        read_folder(tmp_path)


def test_copies_across_training_and_validation_stay_in_validation(tmp_path: Path) -> None:
    folder(tmp_path / "train", count=5)
    folder(tmp_path / "val", count=3, seed=1)
    for number in range(2):
        shutil.copy(
            tmp_path / "train" / "circle" / f"img00{number}.png",
            tmp_path / "val" / "circle" / f"{number}.png",
        )
    found = read_folder(tmp_path)
    assert found.validation is not None
    assert (len(found.train), len(found.validation)) == (13, 11)
    assert "2 pictures of train/ are in val/ too" in found.summary()


def test_copies_within_a_folder_are_found_by_content(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures")
    shutil.copy(root / "circle" / "img000.png", root / "circle" / "copy.png")
    shutil.copy(root / "circle" / "img001.png", root / "square" / "mistaken.png")
    found = read_folder(root)
    names = {found.train.files[a].name: found.train.files[b].name for a, b in found.copies.items()}
    assert names == {"img000.png": "copy.png", "mistaken.png": "img001.png"}
    assert "2 copies of other pictures" in found.summary()
    assert "1 pictures lie in two classes" in found.summary()


def test_every_picture_is_looked_at_and_the_first_bad_one_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures")
    for name in ("img002.png", "img003.png"):
        (root / "square" / name).write_bytes((root / "square" / name).read_bytes()[:-900])
    with pytest.raises(PictureError, match=r"square/img002\.png is damaged.*\(1 more like it\)"):
        check_pictures(read_folder(root).files)


def test_pictures_that_cannot_be_read_are_left_out_when_asked(tmp_path: Path) -> None:
    pictures = folder(tmp_path / "pictures")
    (pictures / "square" / "img002.png").write_bytes(b"")
    (pictures / "circle" / "img000.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert len(read_folder(pictures).train) == 18
    found = read_folder(pictures, skip_unreadable=True)
    assert len(found.train) == 16
    assert "left out, as they cannot be read: circle/img000.png, square/img002.png" in found.summary()
    settings = DatasetSettings("imagefolder", pictures, workers=0)
    with pytest.raises(PictureError, match=r"img000\.png .*; dataset\.skip_unreadable=true leaves"):
        check(settings)
    asked = replace(settings, skip_unreadable=True)
    assert "left out" in check(asked)
    split = load(asked, 32)
    assert len(split.train) + len(split.validation) == 16
    assert sum(len(labels) for _, labels in split.train.batches(4, False, 0)) == len(split.train)
    for each in (pictures / "square").iterdir():
        each.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"square holds no image"):
        read_folder(pictures, skip_unreadable=True)
