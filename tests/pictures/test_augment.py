from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from nas.data import DATASETS, DatasetSettings, load
from nas.pictures.augment import Augment
from nas.pictures.folders import DatasetError
from nas.pictures.preprocessing import Preprocessing
from search_spaces.errors import InputError
from tests.conftest import CONF
from tests.pictures.shapes import folder

# Left half black, right half white.
ARROW = Image.fromarray(np.repeat(np.repeat(np.array([[0, 255]], np.uint8), 48, 0), 32, 1)).convert("RGB")
PLAIN = Preprocessing.of_photos(32)


def _mirrored(augment: Augment) -> list[bool]:
    torch.manual_seed(0)
    transform = augment.of_files(PLAIN)
    found = [transform(ARROW) for _ in range(40)]
    return [bool(image[:, :, :8].mean() > image[:, :, -8:].mean()) for image in found]


def test_pictures_are_mirrored_only_where_that_is_wanted() -> None:
    assert not any(_mirrored(Augment()))
    assert not any(_mirrored(Augment(shift=0.1, colour=0.3)))
    assert 5 < sum(_mirrored(Augment(flip=True))) < 35


def test_without_any_step_training_sees_what_validation_sees() -> None:
    assert np.array_equal(Augment().of_files(PLAIN)(ARROW).numpy(), PLAIN(ARROW))
    images = torch.randn(5, 3, 16, 16)
    assert torch.equal(Augment().batch(images, torch.Generator()), images)


@pytest.mark.parametrize("augment", [Augment(crop=0.2), Augment(shift=0.2), Augment(colour=0.5)])
def test_every_step_changes_something_and_keeps_the_shape(augment: Augment) -> None:
    torch.manual_seed(0)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    transform = augment.of_files(PLAIN)
    one, two = transform(noise), transform(noise)
    assert one.shape == (3, 32, 32)
    assert not torch.equal(one, two)
    assert not np.array_equal(one.numpy(), PLAIN(noise))


def test_images_of_a_batch_are_changed_each_for_itself() -> None:
    image = torch.randn(3, 16, 16)
    images = image.expand(64, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    flipped = Augment(flip=True).batch(images, generator)
    kinds = {each.numpy().tobytes() for each in flipped}
    assert kinds == {image.numpy().tobytes(), image.flip(2).contiguous().numpy().tobytes()}
    shifted = Augment(shift=1 / 16).batch(images, generator)
    assert len({each.numpy().tobytes() for each in shifted}) == 9
    inner = image[:, 1:-1, 1:-1]
    assert all(
        any(torch.equal(each[:, y : y + 14, x : x + 14], inner) for y in range(3) for x in range(3))
        for each in shifted
    )


def test_what_cannot_be_is_refused() -> None:
    for wrong in ({"crop": 0.0}, {"crop": 1.5}, {"shift": -0.1}, {"colour": 2.0}):
        with pytest.raises(InputError, match=rf"dataset\.augment\.{next(iter(wrong))}"):
            Augment(**wrong)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=r"dataset\.augment\.crop and colour are for files"):
        DatasetSettings("digits", augment=Augment(crop=0.5))


def test_the_settings_of_the_commands_are_the_usual_ones() -> None:
    for path in (CONF / "dataset").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["augment"] == asdict(DATASETS[path.stem].augment), path


@pytest.mark.parametrize("name", ["imagefolder", "digits"])
def test_balanced_training_shows_all_classes_equally_often(name: str, tmp_path: Path) -> None:
    settings = DatasetSettings("digits", limit=600)
    if name == "imagefolder":
        root = folder(tmp_path, count=3)
        folder(root, ["circle"], count=40)
        settings = DatasetSettings("imagefolder", root, workers=0)
    shares = []
    for balanced in (False, True):
        split = load(replace(settings, balanced=balanced), 16)
        assert len(split.validation) == len(load(settings, 16).validation)
        labels = torch.cat([found for seed in range(8) for _, found in split.train.batches(8, True, seed)])
        shares.append(torch.bincount(labels) / len(labels))
    even = 1 / len(shares[0])
    assert (shares[1] - even).abs().max() < 0.25 * even + 0.05
    if name == "imagefolder":
        assert shares[0][0] > 0.7
