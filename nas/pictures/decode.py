"""One way from a picture file to RGB, for training, calibration and whatever runs the network later.

Pictures are turned as their EXIF orientation says, transparent ones lie on white, and deep ones are scaled:
16 bits by 1/257, floats between 0 and 1 by 255. A bundle's ``predict.py`` does the same; a test compares.
"""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from search_spaces.errors import InputError

# What folders of pictures hold, in the formats that Pillow reads.
SUFFIXES = frozenset(
    f".{ending}"
    for endings in ("avif bmp gif jfif jpe jpeg jpg jp2", "pbm pgm png pnm ppm tga tif tiff webp")
    for ending in endings.split()
)
# Of all that Pillow knows what such folders hold (JPEG opens MPO too), and none that runs a program (EPS).
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
Image.init()
# Of pictures that it reads all the same: large ones, and phones' EXIF.
warnings.filterwarnings("ignore", module=r"PIL\.")
# A picture of one colour has any number of pixels in a few kilobytes. Read, an opaque one takes eight bytes a
# pixel and a transparent one twenty: no more than 500 MB.
_MOST_PIXELS = 60_000_000
_MOST_TRANSPARENT = 25_000_000
# A JPEG that is no progressive one is decoded line by line, and smaller where it is larger than that: phones
# make 100 and 200 million pixels.
_MOST_JPEG = 240_000_000
_MOST_BYTES = 400_000_000
Image.MAX_IMAGE_PIXELS = _MOST_JPEG // 2  # it refuses twice as many before anything is read
_STRIP = 256
# How files begin that are called pictures and are none.
_BEGINNINGS = (
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML file"),
    (b"<svg", "a drawing (SVG): save it as PNG"),
    (b"%pdf", "a PDF"),
    (b"pk\x03\x04", "a zip archive"),
    (b"version https://git-lfs", "a pointer of Git LFS: run git lfs pull"),
)


class PictureError(InputError):
    """A file that is no picture one can use. The message names it."""


def read_picture(path: Path) -> Image.Image:
    """The picture in a file, as RGB of 8 bits; of an animation the first frame.

    Raises:
        PictureError: if it cannot be read.
    """
    with _opened(path) as image:
        return _rgb(image, path)


def check_picture(path: Path) -> None:
    """Read a picture to its end, at the lowest resolution that its format offers.

    Raises:
        PictureError: if :func:`read_picture` could not read it.
    """
    with _opened(path) as image:
        if image.format in ("JPEG", "MPO"):
            image.draft("RGB", (1, 1))
        _rgb(image, path)


class _opened:  # noqa: N801 - reads as a function
    """A picture's header, read; closes its file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Image.Image:
        if self._path.exists():
            if not self._path.is_file():  # a pipe would keep us for ever
                raise PictureError(f"{self._path} is no file: remove it")
            if self._path.stat().st_size > _MOST_BYTES:  # some formats are read whole at once
                raise PictureError(f"{self._path} is too large: more than {_MOST_BYTES / 1e6:,.0f} MB")
        try:
            self._image = Image.open(self._path, formats=_FORMATS)
        except Image.DecompressionBombError:
            raise self._too_large(_MOST_JPEG) from None
        except FileNotFoundError:
            what = "is a link to nothing" if self._path.is_symlink() else "is not there"
            raise PictureError(f"{self._path} {what}: remove it, or bring the file back") from None
        except OSError as error:
            if isinstance(error, UnidentifiedImageError) or error.errno is None:
                raise PictureError(f"{self._path} is {_kind(self._path)}: mend or remove it") from None
            raise PictureError(f"{self._path} cannot be read: {error.strerror}") from None
        except Exception as error:  # damaged headers fail in many ways
            raise PictureError(f"{self._path} cannot be read: {error}; mend or remove it") from None
        most = _MOST_TRANSPARENT if self._image.has_transparency_data else _MOST_PIXELS
        if self._image.format in ("JPEG", "MPO") and not self._image.info.get("progressive"):
            _shrink(self._image, most)
        if self._image.width * self._image.height > most:
            self._image.close()
            raise self._too_large(most)
        return self._image

    def __exit__(self, *_: object) -> None:
        self._image.close()

    def _too_large(self, most: int) -> PictureError:
        return PictureError(f"{self._path} is too large: more than {most:,} pixels; scale it down")


def _shrink(image: Image.Image, most: int) -> None:
    """Let a JPEG that has more pixels be decoded at a half of its sides, a quarter or an eighth."""
    width, height = image.size
    if width * height > most:
        # Once: Pillow takes no second one.
        share = next((each for each in (2, 4) if (width // each) * (height // each) <= most), 8)
        image.draft("RGB", (width // share, height // share))


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "an empty file"
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "a HEIC picture, which cannot be read: save it as JPEG"
    lowered = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, kind in _BEGINNINGS:
        if lowered.startswith(beginning):
            return f"{kind}, not a picture"
    return "no picture that can be read"


def _loaded(image: Image.Image, path: Path) -> Image.Image:
    try:
        image.load()
    except Exception as error:  # damaged data fails in many ways
        raise PictureError(f"{path} is damaged, or ends too early: {error}; replace or remove it") from None
    return image


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    image = _upright(_loaded(image, path))
    if image.mode[0] in "IF":
        image = Image.fromarray(_shallow(np.asarray(image), path))
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("RGB")
    except (ValueError, OSError) as error:
        raise PictureError(f"{path} has colours that cannot be read ({image.mode}): {error}") from None


def _upright(image: Image.Image) -> Image.Image:
    with contextlib.suppress(Exception):  # damaged EXIF fails in many ways; the picture itself is fine
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _shallow(values: np.ndarray, path: Path) -> np.ndarray:
    """One channel of 16-bit integers or of floats, in 8 bits."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 255):  # NaN too
            raise PictureError(
                f"{path} holds floats from {low:g} to {high:g}: scale them to 0 to 1, or save 8 or 16 bits"
            )
        scale = 255.0 if high <= 1 else 1.0
    else:
        if not (low >= 0 and high <= 65535):
            raise PictureError(f"{path} holds integers from {low:g} to {high:g}: save it in 8 or 16 bits")
        scale = 1 / 257
    found = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), _STRIP):  # doubles of a whole picture would take half a gigabyte
        found[row : row + _STRIP] = np.rint(values[row : row + _STRIP] * scale)
    return found
