"""Photos of every kind and mode, upright and in three channels, and one clear line for the rest."""

import io
from pathlib import Path

import numpy as np
import pytest
from drawn import refused
from PIL import Image

from capture_lib.catalog.photos import load_photo
from capture_lib.utils import InputError


def saved(path: Path, photo: Image.Image, **options) -> np.ndarray:
    photo.save(path, **options)
    return load_photo(path)


def gradient(mode: str = "RGB", size: tuple[int, int] = (32, 24)) -> Image.Image:
    ramp = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8)
    return Image.fromarray(np.stack([ramp, ramp[::-1], np.full_like(ramp, 90)], 2)).convert(mode)


def test_transparency_is_laid_on_white(tmp_path):
    alpha = np.zeros((4, 6, 4), np.uint8)
    alpha[:, :3] = (200, 10, 30, 255)
    alpha[:, 3] = (200, 10, 30, 51)  # a fifth
    rgb = saved(tmp_path / "a.png", Image.fromarray(alpha))
    assert rgb[0, 0].tolist() == [200, 10, 30] and rgb[0, 5].tolist() == [255, 255, 255]
    assert np.abs(rgb[0, 3].astype(int) - [244, 206, 210]).max() <= 1
    grey = saved(tmp_path / "b.png", Image.fromarray(alpha[..., [0, 3]], "LA"))
    assert grey[0, 0].tolist() == [200] * 3 and grey[0, 5].tolist() == [255] * 3
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 0, 0, 0])
    assert saved(tmp_path / "c.png", palette, transparency=1)[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_cmyk_is_near_its_rgb(tmp_path):
    rgb = np.asarray(gradient()).astype(int)
    found = saved(tmp_path / "a.tif", gradient("CMYK"))
    assert found.shape == rgb.shape and np.abs(found - rgb).max() <= 2
    assert np.abs(saved(tmp_path / "a.jpg", gradient("CMYK"), quality=98) - rgb).mean() < 4


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_keep_their_order_and_range(tmp_path, name):
    wide = np.arange(0, 65536, 128, dtype=np.uint16).reshape(16, 32)
    wide[-1, -1] = 65535
    found = saved(tmp_path / name, Image.fromarray(wide))
    expected = wide[..., None] // 257 + np.zeros(3, int)
    assert found.shape == (16, 32, 3) and np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "LAB", "F", "I"])
def test_every_mode_gives_three_channels_of_bytes(tmp_path, mode):
    found = saved(tmp_path / "a.tif", gradient(mode))
    assert found.shape == (24, 32, 3) and found.dtype == np.uint8 and found.std() > 10


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_stands_upright(tmp_path, orientation):
    upright = np.asarray(gradient())
    turns = {1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud, 5: lambda p: p.transpose(1, 0, 2),
             6: lambda p: np.rot90(p, 1), 7: lambda p: np.rot90(p, 2).transpose(1, 0, 2), 8: lambda p: np.rot90(p, -1)}
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation](upright)))
    assert np.array_equal(saved(tmp_path / "a.png", stored, exif=exif), upright)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 100), (1, 500)])
def test_odd_sizes_load(tmp_path, size):
    assert saved(tmp_path / "a.png", Image.new("RGB", size, (9, 8, 7))).shape == (size[1], size[0], 3)


def test_of_an_animated_gif_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    found = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (found == [255, 0, 0]).all()


@pytest.mark.filterwarnings("ignore")  # of Pillow, about the size
def test_a_decompression_bomb_is_refused_unread(tmp_path):
    Image.new("1", (20_000, 6_000)).save(tmp_path / "a.png")  # 120 million pixels, a few kilobytes
    refused(lambda: load_photo(tmp_path / "a.png"), "a.png: 20000×6000 pixels are too many")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "b.png")  # beyond Pillow's own limit too
    refused(lambda: load_photo(tmp_path / "b.png"), "b.png")


def test_missing_empty_and_foreign_files_are_named(tmp_path):
    refused(lambda: load_photo(tmp_path / "no.jpg"), "no.jpg: no such photo")
    refused(lambda: load_photo(tmp_path), str(tmp_path), "does not decode")
    for name, content in (("empty.jpg", b""), ("page.jpg", b"<html>"), ("text.png", "中文".encode("gbk"))):
        (tmp_path / name).write_bytes(content)
        refused(lambda name=name: load_photo(tmp_path / name), f"{name}: the photo does not decode")


@pytest.mark.filterwarnings("ignore")  # of Pillow, about damaged tags
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_a_damaged_photo_gives_a_photo_or_one_line_and_nothing_else(tmp_path, kind):
    whole = io.BytesIO()
    gradient().save(whole, kind)
    rng, refusals = np.random.default_rng(0), 0
    for attempt in range(60):
        damaged = bytearray(whole.getvalue())
        if attempt % 2:
            damaged = damaged[:int(rng.integers(len(damaged) * 3 // 4))]
        else:
            for place in rng.integers(0, min(len(damaged), 300), 6):
                damaged[place] = rng.integers(256)
        (tmp_path / "a.img").write_bytes(damaged)
        try:
            photo = load_photo(tmp_path / "a.img")
            assert photo.ndim == 3 and photo.shape[2] == 3 and photo.dtype == np.uint8
        except InputError as error:
            refusals += 1
            assert len(str(error).splitlines()) == 1 and "a.img" in str(error)
    assert refusals >= 10
