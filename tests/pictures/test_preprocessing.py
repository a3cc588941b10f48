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
    resized = v2.Resize(round(32 * 256 / 224), antialias=True)(image)
    # CenterCrop, but for a border of an odd width, half of which it rounds to even.
    left, top = ((side - 32) // 2 for side in resized.size)
    usual = v2.Compose(
        [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)]
    )
    found = Preprocessing.of_photos(32)(image)
    assert found.shape == (3, 32, 32)
    assert found.dtype == np.float32
    expected = usual(v2.functional.crop(resized, top, left, 32, 32)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_validation_pictures_are_what_it_gives(tmp_path: Path) -> None:
    root = folder(tmp_path, size=(96, 64))
    split = load(DatasetSettings("imagefolder", root, workers=0), 64)
    shown = {batch.numpy().tobytes() for batch, _ in split.validation.batches(1, False, 0)}
    found = {split.preprocessing(Image.open(path)).tobytes() for path in root.rglob("*.png")}
    assert shown < found
    assert len(shown) > 1
