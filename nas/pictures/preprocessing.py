"""What a network is shown of a picture: resized, cropped, normalised, the same wherever it runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Channel means and deviations of ImageNet, the convention of all torchvision weights.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
# The usual ratio of resize to crop: 256 to 224.
_RESIZE_TO_CROP = 256 / 224


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From an RGB picture to the input of a network.

    Attributes:
        resize: length of the shorter side after resizing, in pixels; the aspect is kept.
        crop: side of the square that is cut out of the middle, in pixels: the network's resolution.
        mean: of each channel, subtracted from values between 0 and 1.
        std: of each channel, divided by.
    """

    resize: int
    crop: int
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = DEVIATION

    @classmethod
    def of_photos(cls, resolution: int) -> Preprocessing:
        """The usual one: somewhat larger than the network's resolution, then the middle of it."""
        return cls(round(resolution * _RESIZE_TO_CROP), resolution)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """The input of a network.

        Args:
            image: in RGB, see :func:`nas.pictures.decode.read_picture`.

        Returns:
            (3, crop, crop).
        """
        width, height = image.size
        shorter = min(width, height)
        size = self.resize * width // shorter, self.resize * height // shorter
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = ((side - self.crop) // 2 for side in image.size)
        image = image.crop((left, top, left + self.crop, top + self.crop))
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        pixels = (np.asarray(image, np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
