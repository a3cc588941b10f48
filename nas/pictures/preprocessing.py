"""A picture made into a network's input: resized, cropped, normalised, the same wherever it runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from search_spaces.gate import Gate

# Channel means and deviations of ImageNet, the convention of all torchvision weights.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
# The usual ratio of resize to crop: 256 to 224.
_RESIZE_TO_CROP = 256 / 224
# What is the same for all: said for those who read the file.
_FIXED = {
    "channels": "RGB",
    "interpolation": "bilinear",
    "antialias": True,
    "crop_position": "center",
    "exif_orientation": "applied",
    "background": "white",
    "scale": 1 / 255,
}
_MOST_PIXELS = 10_000


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

    def at(self, resolution: int) -> Preprocessing:
        """The same for a network of another resolution: the same share of a picture is shown."""
        if resolution == self.crop:
            return self
        return replace(self, resize=round(self.resize * resolution / self.crop), crop=resolution)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """The input of a network.

        Args:
            image: in RGB, see :func:`nas.pictures.decode.read_picture`.

        Returns:
            (3, crop, crop).
        """
        return self.normalised(np.asarray(self.cropped(image)))

    def cropped(self, image: Image.Image) -> Image.Image:
        """The square that is shown of a picture."""
        size = [self.resize * side // min(image.size) for side in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        left, top = ((side - self.crop) // 2 for side in image.size)
        return image.crop((left, top, left + self.crop, top + self.crop))

    def normalised(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(H, W, 3) of 0 to 255 as (3, H, W) floats."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        values = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    def to_dict(self) -> dict[str, object]:
        """Plain values, with a word for each step."""
        return {
            "resize": self.resize,
            "crop": self.crop,
            "mean": list(self.mean),
            "std": list(self.std),
            **_FIXED,
        }

    @classmethod
    def from_dict(cls, data: object, gate: Gate) -> Preprocessing:
        """An object made again of what :meth:`to_dict` gave.

        Raises:
            InputError: of the gate's kind, if it is something else.
        """
        fields = gate.mapping(data, "preprocessing")
        crop = gate.integer("preprocessing: crop", fields.get("crop"), 1, _MOST_PIXELS)
        resize = gate.integer("preprocessing: resize", fields.get("resize"), crop, _MOST_PIXELS)
        mean, std = (
            tuple(
                gate.number(f"preprocessing: {name}", each)
                for each in gate.sequence(fields.get(name), name, 3)
            )
            for name in ("mean", "std")
        )
        if len(mean) != 3 or len(std) != 3 or not all(std):
            gate.fail("preprocessing: mean and std must be three numbers each, std not 0")
        for name, value in _FIXED.items():
            if name in fields and fields[name] != value:
                gate.fail(f"preprocessing: {name} must be {value}, not {fields[name]!r}")
        return cls(resize, crop, mean, std)
