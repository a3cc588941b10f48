import gzip
import hashlib
import os
import pickle
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from nas.data import DatasetSettings, Split, balanced_sample, class_count, load
from nas.pictures.folders import DatasetError
from tests.pictures.shapes import folder


def _picture_folder(root: Path, classes: int = 3, images: int = 8, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
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
    _picture_folder(tmp_path / "val", images=3, seed=1)
    split = load(DatasetSettings("imagefolder", tmp_path, workers=0), 32)
    assert (len(split.train), len(split.validation)) == (15, 9)


def test_test_images_of_a_folder_are_kept_apart(tmp_path: Path) -> None:
    for seed, part in enumerate(("train", "val", "test")):
        _picture_folder(tmp_path / part, images=4 - seed, seed=seed)
    split = load(DatasetSettings("imagefolder", tmp_path, workers=0), 32)
    assert split.test is not None
    assert (len(split.train), len(split.validation), len(split.test)) == (12, 9, 6)
    found = next(split.test.batches(6, False, 0))[0]
    training, validation = _identities(split)
    assert not {each.numpy().tobytes() for each in found} & (training | validation)


def test_imagenet_needs_a_thousand_classes_in_two_folders(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no folder .*train"):
        load(DatasetSettings("imagenet", tmp_path), 32)
    _picture_folder(tmp_path / "train")
    _picture_folder(tmp_path / "val")
    with pytest.raises(DatasetError, match="3 class folders, ImageNet has 1000"):
        load(DatasetSettings("imagenet", tmp_path), 32)


@pytest.mark.slow
def test_imagenet_is_read_from_its_folders(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for number in range(1000):
            folder = tmp_path / part / f"n{number:08d}"
            folder.mkdir(parents=True)
            # The class is the colour: the loader must not mix up folders.
            Image.new("RGB", (9, 8), (number % 256, number // 256, 0)).save(folder / "image.JPEG")
    split = load(DatasetSettings("imagenet", tmp_path, workers=0), 8)
    assert (len(split.train), len(split.validation)) == (1000, 1000)
    assert split.classes[:2] == ("n00000000", "n00000001")
    assert len(load(DatasetSettings("imagenet", tmp_path, limit=50, workers=0), 8).train) == 50
    images, labels = next(split.validation.batches(1000, False, 0))
    assert labels.tolist() == list(range(1000))
    red = (images[:, 0].mean((1, 2)) * 0.229 + 0.485) * 255
    assert (red - labels % 256).abs().max() < 6  # JPEG

    # As downloaded, the validation images are not sorted into folders.
    for folder in (tmp_path / "val").iterdir():
        for image in folder.iterdir():
            image.rename(tmp_path / "val" / f"{folder.name}_{image.name}")
        folder.rmdir()
    with pytest.raises(DatasetError, match=r"val holds 0 class folder\(s\)"):
        load(DatasetSettings("imagenet", tmp_path), 8)


CIFAR = {
    "cifar10": (torchvision.datasets.CIFAR10, "labels", "label_names", 10),
    "cifar100": (torchvision.datasets.CIFAR100, "fine_labels", "fine_label_names", 100),
}


def _make_cifar(name: str, root: Path, patch: pytest.MonkeyPatch) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Files in CIFAR's own format; torchvision is told their checksums in place of the originals'."""
    kind, labels_key, names_key, classes = CIFAR[name]
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    made = {}

    def write(file: str, content: object) -> str:
        (folder / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    for part in ("train_list", "test_list"):
        checksums = []
        for file, _ in getattr(kind, part):
            pixels = generator.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
            labels = (np.arange(20) % min(classes, 10)).tolist()
            made[file] = (pixels, labels)
            content = {"data": pixels.reshape(20, -1), labels_key: labels}
            checksums.append([file, write(file, content)])
        patch.setattr(kind, part, checksums)
    names = [f"class {number}" for number in range(classes)]
    patch.setattr(kind, "meta", {**kind.meta, "md5": write(kind.meta["filename"], {names_key: names})})
    return made


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_is_read_in_its_own_format(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = _make_cifar(name, tmp_path, monkeypatch)
    settings = DatasetSettings(name, tmp_path)  # type: ignore[arg-type]
    split = load(settings, 32)
    assert len(split.classes) == class_count(settings)
    assert split.classes[:2] == ("class 0", "class 1")
    *training, (test_pixels, test_labels) = files.values()
    # What ranks candidates is kept from training: the test images judge the winner alone.
    count = sum(len(labels) for _, labels in training)
    assert len(split.train) + len(split.validation) == count
    assert len(split.validation) >= 0.2 * count
    assert split.test is not None
    images, labels = next(split.test.batches(20, False, 0))
    mean, deviation = (
        torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    assert torch.allclose((images * deviation + mean) * 255, torch.from_numpy(test_pixels).float(), atol=1e-3)
    assert labels.tolist() == test_labels
    assert len(load(replace(settings, limit=10), 16).train) == 10
    assert next(split.train.batches(4, True, 0))[0].shape == (4, 3, 32, 32)

    # A damaged file is no surprise later but said at once.
    damaged = next((tmp_path / CIFAR[name][0].base_folder).iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=rf"{name} is not in .*corrupted"):
        load(settings, 32)


FASHION = Path("/usr/share/datasets/fashion-mnist")


def _idx(path: Path, values: np.ndarray) -> None:
    head = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(head + values.astype(np.uint8).tobytes())


@pytest.mark.skipif(not FASHION.exists(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_is_read_as_debian_ships_it() -> None:
    split = load(DatasetSettings("fashion_mnist", FASHION, validation_share=0.1, limit=1000), 32)
    assert split.test is not None
    assert (len(split.train), len(split.validation), len(split.test)) == (1000, 6000, 10_000)
    assert split.classes[9] == "ankle boot"
    assert np.bincount(split.validation.labels).tolist() == [600] * 10
    assert next(split.test.batches(4, False, 0))[1].tolist() == [9, 2, 1, 1]


def test_fashion_mnist_in_torchvisions_folder_and_damaged(tmp_path: Path) -> None:
    settings = DatasetSettings("fashion_mnist", tmp_path)
    with pytest.raises(DatasetError, match=r"no train-images-idx3-ubyte or train-images-idx3-ubyte\.gz"):
        load(settings, 28)
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        _idx(raw / f"{part}-images-idx3-ubyte", np.full((40, 28, 28), 7))
        _idx(raw / f"{part}-labels-idx1-ubyte", np.arange(40) % 10)
    assert len(load(settings, 28).train) == 30
    damaged = raw / "t10k-images-idx3-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(DatasetError, match="t10k-images-idx3-ubyte is damaged"):
        load(settings, 28)
    damaged.unlink()
    packed = gzip.compress(bytes(100))
    damaged.with_suffix(".gz").write_bytes(packed[:12] + b"\xff" + packed[13:])
    with pytest.raises(DatasetError, match=r"cannot read .*t10k-images-idx3-ubyte\.gz"):
        load(settings, 28)
    _idx(damaged, np.zeros((0, 28, 28)))
    with pytest.raises(DatasetError, match="t10k-images-idx3-ubyte is damaged"):
        load(settings, 28)


def test_cifar_that_cannot_be_had_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match=r"cifar10 is not in .*dataset\.download=true"):
        load(DatasetSettings("cifar10", tmp_path), 32)

    def unreachable(self: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", unreachable)
    with pytest.raises(DatasetError, match=r"cifar10 is not in .*no network"):
        load(DatasetSettings("cifar10", tmp_path, download=True), 32)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    path.parent.mkdir()
    path.touch()
    os.truncate(path, 20_000_000_000)
    with pytest.raises(DatasetError, match="data_batch_1 is no file of cifar10"):
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
    with pytest.raises(DatasetError, match=r"dataset\.workers must be at least 0, not -1"):
        DatasetSettings("digits", workers=-1)
    for limit in (0, -1):
        with pytest.raises(DatasetError, match=r"dataset\.limit must be at least 1, or null for all"):
            DatasetSettings("digits", limit=limit)


def test_splits_that_leave_a_class_without_pictures_are_refused(tmp_path: Path) -> None:
    settings = DatasetSettings("imagefolder", folder(tmp_path, count=2), workers=0)
    with pytest.raises(
        DatasetError, match=r"validation_share=0\.8 leaves no image .* class circle, which has 2"
    ):
        load(replace(settings, validation_share=0.8), 32)
    with pytest.raises(
        DatasetError, match=r"dataset\.limit=2 leaves classes without .* \(circle, square, triangle\)"
    ):
        load(replace(settings, limit=2), 32)
    few = load(replace(settings, limit=3), 32)
    assert next(few.train.batches(3, False, 0))[1].tolist() == [0, 1, 2]


def test_copies_stay_on_their_side_of_the_split(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures", count=8)
    for number in range(8):
        shutil.copy(root / "circle" / f"img00{number}.png", root / "circle" / f"copy{number}.png")
    shutil.copy(root / "circle" / "img000.png", root / "square" / "mistaken.png")
    for seed in range(3):
        split = load(DatasetSettings("imagefolder", root, workers=0, seed=seed), 32)
        assert len(split.train) + len(split.validation) == 33
        train, validation = _identities(split)
        assert not train & validation


def test_a_balanced_sample_holds_all_classes_alike(tmp_path: Path) -> None:
    names = [f"class {number:02d}" for number in range(12)]
    split = load(DatasetSettings("imagefolder", folder(tmp_path, names, count=4), workers=0), 16)
    found = balanced_sample(split.train, 24)
    classes = {
        image.numpy().tobytes(): int(label)
        for images, labels in split.train.batches(64, False, 0)
        for image, label in zip(images, labels, strict=True)
    }
    counts = Counter(classes[image.numpy().tobytes()] for image in found)
    assert counts == dict.fromkeys(range(12), 2)
    assert torch.equal(found, balanced_sample(split.train, 24))
    assert not torch.equal(found, balanced_sample(split.train, 24, seed=1))
    assert len(balanced_sample(split.train, 5)) == 12  # one of each at least
    assert len(balanced_sample(split.train, 100)) == len(split.train) == 36
