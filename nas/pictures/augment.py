"""Random changes of training pictures: each can be turned off, as some change the meaning of some data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from nas.pictures.preprocessing import Preprocessing
from search_spaces.errors import InputError


@dataclass(frozen=True, slots=True)
class Augment:
    """Random changes of training pictures, drawn for each picture anew.

    Attributes:
        flip: mirrored left to right, half of them; wrong for arrows, digits and texts.
        crop: least share of the area that is shown, enlarged; None: what validation shows. Files only.
        shift: moved by up to this share of the side.
        colour: brightness, contrast and saturation changed by up to this share. Files only.
    """

    flip: bool = False
    crop: float | None = None
    shift: float = 0.0
    colour: float = 0.0

    def __post_init__(self) -> None:
        if self.crop is not None and not 0 < self.crop <= 1:
            raise InputError(
                f"dataset.augment.crop must lie above 0 and up to 1, or be null, not {self.crop:g}"
            )
        if not 0 <= self.shift <= 0.5:
            raise InputError(f"dataset.augment.shift must lie between 0 and 0.5, not {self.shift:g}")
        if not 0 <= self.colour < 1:
            raise InputError(f"dataset.augment.colour must lie between 0 and 1, not {self.colour:g}")

    def of_files(self, preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
        """From an RGB picture to (3, H, W) normalised floats; random numbers are PyTorch's global ones."""
        from torchvision.transforms import v2

        side = preprocessing.crop
        steps: list[Callable[..., object]] = [
            v2.RandomResizedCrop(side, scale=(self.crop, 1)) if self.crop else preprocessing.cropped
        ]
        if self.shift:
            steps.append(v2.RandomCrop(side, padding=self._pixels(side), padding_mode="edge"))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.colour:
            steps.append(v2.ColorJitter(self.colour, self.colour, self.colour))
        transform: Callable[[Image.Image], Tensor] = v2.Compose([*steps, _Normalised(preprocessing)])
        return transform

    def batch(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images in memory, flipped and shifted each for itself: (N, 3, H, W), as given."""
        count, side = len(images), images.shape[-1]
        if self.flip:
            mirrored = torch.rand(count, generator=generator) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        if pixels := self._pixels(side):
            padded = functional.pad(images, (pixels,) * 4, mode="replicate")
            y, x = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator) + torch.arange(side)
            image, channel = torch.arange(count)[:, None, None, None], torch.arange(3)[None, :, None, None]
            images = padded[image, channel, y[:, None, :, None], x[:, None, None, :]]
        return images

    def _pixels(self, side: int) -> int:
        return max(1, round(self.shift * side)) if self.shift else 0


@dataclass(frozen=True, slots=True)
class _Normalised:
    preprocessing: Preprocessing

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(self.preprocessing.normalised(np.asarray(image)))
