import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas.pictures import decode
from nas.pictures.decode import PictureError, check_picture, read_picture
from tests.pictures.shapes import shape


def _pixels(path: Path) -> np.ndarray:
    check_picture(path)
    image = read_picture(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
def test_sixteen_bits_are_scaled(ending: str, tmp_path: Path) -> None:
    eight = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(eight * 257).save(tmp_path / f"deep.{ending}")
    assert np.array_equal(_pixels(tmp_path / f"deep.{ending}")[..., 1], eight)


@pytest.mark.parametrize("scale", [1, 255])
def test_floats_are_scaled(scale: int, tmp_path: Path) -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values * scale).save(tmp_path / "float.tiff")
    assert np.abs(_pixels(tmp_path / "float.tiff")[..., 0] - values * 255).max() <= 0.5


@pytest.mark.parametrize(
    ("mode", "ending"),
    [("RGBA", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "tiff"), ("RGBA", "webp"), ("RGBA", "gif")],
)
def test_what_is_transparent_lies_on_white(mode: str, ending: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    path = tmp_path / f"icon.{ending}"
    image.convert(mode).save(path, lossless=True)
    pixels = _pixels(path)
    assert (pixels[:, :4] == 0).all()
    assert (pixels[:, 4:] == 255).all()


def test_a_colour_declared_transparent_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4), (10, 20, 30))
    image.putpixel((0, 0), (200, 0, 0))
    image.save(tmp_path / "key.png", transparency=(10, 20, 30))
    pixels = _pixels(tmp_path / "key.png")
    assert pixels[0, 0].tolist() == [200, 0, 0]
    assert (pixels[1:] == 255).all()


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 180), (6, 90), (8, 270)])
def test_pictures_stand_as_their_orientation_says(orientation: int, turn: int, tmp_path: Path) -> None:
    image = shape(2, np.random.default_rng(0))
    exif = Image.Exif()
    exif[0x112] = orientation
    image.rotate(turn, expand=True).save(tmp_path / "photo.jpg", exif=exif, quality=98, subsampling=0)
    assert np.abs(_pixels(tmp_path / "photo.jpg") - np.asarray(image)).mean() < 6


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_colours_become_rgb(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (9, 8), "white").convert(mode)
    image.save(tmp_path / "picture.tiff")
    assert (_pixels(tmp_path / "picture.tiff") >= 254).all()


@pytest.mark.parametrize("ending", ["gif", "jfif", "avif", "webp", "bmp", "jpe", "jp2", "tga"])
def test_formats_that_people_have(ending: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (200, 40, 40))
    formats = {"jfif": "JPEG", "jpe": "JPEG"}
    image.save(tmp_path / f"picture.{ending}", formats.get(ending))
    assert np.abs(_pixels(tmp_path / f"picture.{ending}") - (200, 40, 40)).max() < 12


def _long(path: Path) -> None:
    path.write_bytes(b"RIFF")
    os.truncate(path, 500_000_000)


def _truncated(path: Path) -> None:
    whole = path.with_name("whole.jpg")
    shape(0, np.random.default_rng(0), (400, 300)).save(whole, "JPEG")
    path.write_bytes(whole.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), "an empty file"),
        (lambda path: path.write_text("<!DOCTYPE html><p>404"), "a web page, not a picture"),
        (lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(40)), "HEIC.* save it as JPEG"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda path: path.write_bytes(b"nonsense"), "no picture that can be read"),
        (lambda path: path.symlink_to("nowhere.jpg"), "a link to nothing"),
        (_truncated, "ends too early"),
        (_long, "too large: more than 400 MB"),
    ],
)
def test_what_is_no_picture_is_named(make: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    make(path)  # type: ignore[operator]
    for read in (check_picture, read_picture):
        with pytest.raises(PictureError, match=rf"photo\.jpg .*{message}"):
            read(path)


def test_too_many_pixels_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_MOST_PIXELS", 2000)
    monkeypatch.setattr(decode, "_MOST_TRANSPARENT", 1000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # Pillow refuses more than twice as many by itself
    Image.new("L", (50, 30)).save(tmp_path / "large.png")
    check_picture(tmp_path / "large.png")
    for mode, size in (("L", (50, 50)), ("L", (80, 80)), ("RGBA", (50, 30))):
        Image.new(mode, size).save(tmp_path / "huge.png")
        for read in (check_picture, read_picture):
            with pytest.raises(
                PictureError, match=r"huge\.png is too large: more than (\d|240,000),000 pixels; scale it"
            ):
                read(tmp_path / "huge.png")


def test_a_larger_jpeg_is_decoded_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_MOST_PIXELS", 2000)
    path = tmp_path / "photo.jpg"
    rows, columns = np.mgrid[:120, :200]
    picture = Image.fromarray(np.uint8(np.stack([columns, rows, 255 - columns], axis=2)))
    for share, most in ((1, 24_000), (2, 6000), (4, 1500), (8, 400)):
        monkeypatch.setattr(decode, "_MOST_PIXELS", most)
        picture.save(path, quality=95)
        check_picture(path)
        found = read_picture(path)
        assert found.size == (200 // share, 120 // share)
        expected = picture.convert("RGB").resize(found.size, Image.Resampling.BOX)
        assert np.abs(np.asarray(found, np.int16) - np.asarray(expected, np.int16)).mean() < 4
    # All of a progressive one would be held at once.
    picture.save(path, progressive=True)
    with pytest.raises(PictureError, match=r"photo\.jpg is too large"):
        check_picture(path)


def test_values_that_no_picture_has_are_named(tmp_path: Path) -> None:
    for values in (np.array([[np.nan, 1]]), np.array([[-4.0, 1]]), np.array([[3000.0, 1]])):
        Image.fromarray(values.astype(np.float32)).save(tmp_path / "scan.tiff")
        with pytest.raises(PictureError, match=r"scan\.tiff holds floats from .*scale them"):
            check_picture(tmp_path / "scan.tiff")


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "webp", "tiff", "avif", "ppm", "tga", "jp2"])
def test_damaged_files_are_named_or_read_alike_every_time(ending: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shape(0, generator).save(tmp_path / f"whole.{ending}")
    whole = np.frombuffer((tmp_path / f"whole.{ending}").read_bytes(), np.uint8)
    path = tmp_path / f"damaged.{ending}"
    for number in range(60):
        content = whole[: int(generator.integers(1, len(whole)))] if number % 2 else whole.copy()
        if not number % 2:
            places = generator.integers(0, min(len(whole), 400 if number % 4 else len(whole)), 4)
            content[places] = generator.integers(0, 256, 4)
        path.write_bytes(content.tobytes())
        outcomes = []
        for read in (check_picture, read_picture):
            try:
                read(path)
                outcomes.append("read")
            except PictureError as error:
                outcomes.append("named" if path.name in str(error) else "not named")
        assert outcomes in (["read", "read"], ["named", "named"])
