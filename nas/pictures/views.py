"""Pictures as PyTorch reads them: decoded, transformed, with their class numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from nas.pictures.decode import read_picture
from nas.pictures.folders import Pictures
from nas.pictures.preprocessing import Preprocessing


@dataclass(frozen=True)
class PictureView(Dataset[tuple[Tensor, int]]):
    """Pictures of files, each transformed when it is asked for.

    Attributes:
        pictures: files and class numbers.
        transform: from RGB to (3, H, W) normalised floats.
    """

    pictures: Pictures
    transform: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(read_picture(self.pictures.files[index])), self.pictures.labels[index]


@dataclass(frozen=True, slots=True)
class Plain:
    """Pictures as validation, calibration and deployment see them."""

    preprocessing: Preprocessing

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, crop, crop)."""
        return torch.from_numpy(self.preprocessing(image))
