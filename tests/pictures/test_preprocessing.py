from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from nas.data import DatasetSettings, load
from nas.pictures.preprocessing import DEVIATION, MEAN, Preprocessing
from tests.pictures.shapes import folder, shape


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (301, 200), (33, 99), (64, 64)])
def test_it_is_what_torchvision_does(size: tuple[int, int]) -> None:
    image = shape(0, np.random.default_rng(0), size)
    usual = v2.Compose(
        [
            v2.Resize(round(32 * 256 / 224), antialias=True),
            v2.CenterCrop(32),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, DEVIATION),
        ]
    )
    found = Preprocessing.of_photos(32)(image)
    assert found.shape == (3, 32, 32)
    assert found.dtype == np.float32
    difference = np.abs(found - usual(image).numpy())
    # Where the border is odd torchvision rounds to even.
    assert difference.max() < 1e-5 or difference.mean() < 0.3


def test_validation_pictures_are_what_it_gives(tmp_path: Path) -> None:
    root = folder(tmp_path, size=(96, 64))
    split = load(DatasetSettings("imagefolder", root, workers=0), 64)
    images, _ = next(split.validation.batches(1, False, 0))
    found = [split.preprocessing(Image.open(path)) for path in root.rglob("*.png")]
    assert any(np.array_equal(images[0].numpy(), each) for each in found)
