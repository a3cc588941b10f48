"""Folders of small pictures: coloured shapes on noise."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

NAMES = ("circle", "square", "triangle")


def shape(kind: int, generator: np.random.Generator, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A circle, a square or a triangle of any colour, anywhere."""
    width, height = size
    image = Image.fromarray(generator.integers(90, 166, (height, width, 3), dtype=np.uint8))
    radius = int(generator.integers(min(size) // 5, min(size) // 3))
    x, y = (int(generator.integers(radius, side - radius)) for side in size)
    colour = tuple(generator.integers(0, 256, 3).tolist())
    box = (x - radius, y - radius, x + radius, y + radius)
    draw = ImageDraw.Draw(image)
    if kind % 3 == 0:
        draw.ellipse(box, fill=colour)
    elif kind % 3 == 1:
        draw.rectangle(box, fill=colour)
    else:
        draw.polygon([(x, box[1]), (box[0], box[3]), (box[2], box[3])], fill=colour)
    return image


def folder(
    root: Path,
    classes: Sequence[str] = NAMES,
    count: int = 6,
    seed: int = 0,
    size: tuple[int, int] = (64, 48),
    ending: str = "png",
) -> Path:
    """A folder for each class, all pictures different."""
    generator = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            shape(number, generator, size).save(root / name / f"img{index:03d}.{ending}")
    return root
