from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas.data import DatasetError, DatasetSettings, Split, class_count, load


def _picture_folder(root: Path, classes: int = 3, images: int = 8) -> Path:
    generator = np.random.default_rng(0)
    for number in range(classes):
        folder = root / f"class_{number}"
        folder.mkdir(parents=True)
        for image in range(images):
            pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            pixels[..., number % 3] = 255
            Image.fromarray(pixels).save(folder / f"{image}.png")
    return root


def _identities(split: Split) -> tuple[set[bytes], set[bytes]]:
    sets = []
    for source in (split.train, split.validation):
        batches = source.batches(64, training=False, seed=0)
        sets.append({image.numpy().tobytes() for images, _ in batches for image in images})
    return sets[0], sets[1]


def test_digits_are_split_without_overlap_and_evenly() -> None:
    split = load(DatasetSettings("digits"), 16)
    assert len(split.train) + len(split.validation) == 1797
    train, validation = _identities(split)
    assert not train & validation
    labels = torch.cat([labels for _, labels in split.validation.batches(100, False, 0)])
    counts = torch.bincount(labels, minlength=10)
    assert counts.min() >= 43
    assert counts.max() <= 46
    assert split.classes == tuple("0123456789")
    again = load(DatasetSettings("digits"), 16)
    assert _identities(again) == (train, validation)
    assert _identities(load(DatasetSettings("digits", seed=1), 16)) != (train, validation)


@pytest.mark.parametrize("resolution", [8, 32])
def test_batches_have_the_resolution_and_are_normalised(resolution: int) -> None:
    split = load(DatasetSettings("digits"), resolution)
    images, labels = next(split.train.batches(64, training=True, seed=0))
    assert images.shape == (64, 3, resolution, resolution)
    assert labels.shape == (64,)
    assert -3 < images.min() < 0 < images.max() < 3


def test_training_batches_are_shuffled_by_seed_and_complete_batches_only() -> None:
    split = load(DatasetSettings("digits", limit=130), 8)
    first, again, other = (
        torch.cat([labels for _, labels in split.train.batches(50, True, seed)]) for seed in (1, 1, 2)
    )
    assert len(first) == 100
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_validation_images_are_never_augmented() -> None:
    split = load(DatasetSettings("digits"), 16)
    one, two = (next(split.validation.batches(32, False, seed))[0] for seed in (1, 2))
    assert torch.equal(one, two)


def test_an_image_folder_is_split_by_class(tmp_path: Path) -> None:
    settings = DatasetSettings("imagefolder", _picture_folder(tmp_path / "pictures"), workers=0)
    split = load(settings, 32)
    assert split.classes == ("class_0", "class_1", "class_2")
    assert class_count(settings) == 3
    assert (len(split.train), len(split.validation)) == (18, 6)
    train, validation = _identities(split)
    assert not train & validation
    images, labels = next(split.train.batches(6, training=True, seed=0))
    assert images.shape == (6, 3, 32, 32)
    assert set(labels.tolist()) <= {0, 1, 2}


def test_an_image_folder_with_its_own_split_keeps_it(tmp_path: Path) -> None:
    _picture_folder(tmp_path / "train", images=5)
    _picture_folder(tmp_path / "val", images=3)
    split = load(DatasetSettings("imagefolder", tmp_path, workers=0), 32)
    assert (len(split.train), len(split.validation)) == (15, 9)


def test_imagenet_needs_a_thousand_classes_in_two_folders(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no folder .*train"):
        load(DatasetSettings("imagenet", tmp_path), 32)
    _picture_folder(tmp_path / "train")
    _picture_folder(tmp_path / "val")
    with pytest.raises(DatasetError, match="3 class folders, ImageNet has 1000"):
        load(DatasetSettings("imagenet", tmp_path), 32)


def test_cifar_is_read_in_torchvisions_format(tmp_path: Path) -> None:
    # CIFAR's own files are pickles that torchvision checks by MD5; ours cannot pass, and must say so.
    with pytest.raises(DatasetError, match=r"cifar10 is not in .*dataset\.download=true"):
        load(DatasetSettings("cifar10", tmp_path), 32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "there is no folder"),
        (lambda root: root.mkdir(), r"holds 0 class folder\(s\)"),
        (lambda root: (_picture_folder(root) / "empty").mkdir(), r"class folder .*empty holds no image"),
        (lambda root: _picture_folder(root, classes=1), r"holds 1 class folder\(s\)"),
        (lambda root: _picture_folder(root, images=1), "has a single image"),
    ],
)
def test_unusable_folders_are_named(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "pictures")  # type: ignore[operator]
    with pytest.raises(DatasetError, match=message):
        load(DatasetSettings("imagefolder", tmp_path / "pictures"), 32)


def test_settings_are_checked() -> None:
    with pytest.raises(DatasetError, match="unknown dataset 'mnist'"):
        DatasetSettings("mnist")  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="between 0 and 1"):
        DatasetSettings("digits", validation_share=1.0)
    with pytest.raises(DatasetError, match=r"set dataset\.root"):
        load(DatasetSettings("imagefolder"), 32)
