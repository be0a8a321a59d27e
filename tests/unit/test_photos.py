"""Photos of every kind and mode, upright and in three channels, and one clear line for the rest."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn import refused
from PIL import Image

from capture_lib.catalog import photos
from capture_lib.catalog.photos import load_photo
from capture_lib.utils import ROOT, InputError


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


# ---- what browsers and OpenCV read


def encoded(kind: str, photo: Image.Image | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    (photo or gradient()).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("extra", [
    chunk(b"tEXt", b"note\0" + b"x" * 3_000_000), chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(2_000_000))),
    70 * chunk(b"iTXt", b"note\0\0\0\0\0" + b"x" * 1_000_000),
    chunk(b"iCCP", b"n\0\0" + zlib.compress(bytes(3_000_000)))], ids=["text", "inflating", "many", "profile"])
def test_what_a_png_says_about_itself_does_not_matter(tmp_path, extra):
    png = encoded("PNG")
    (tmp_path / "a.png").write_bytes(png[:33] + extra + png[33:] + b"\0and what follows")
    assert np.array_equal(load_photo(tmp_path / "a.png"), np.asarray(gradient()))


def test_kinds_that_browsers_or_opencv_read(tmp_path):
    rgb = np.asarray(gradient())
    for name, content in (
            ("phone.jpg", encoded("MPO", save_all=True, append_images=[gradient(size=(8, 8))], quality=95)),
            ("progressive.jpg", encoded("JPEG", progressive=True, quality=95)),
            ("a.jp2", encoded("JPEG2000")), ("a.ppm", encoded("PPM")),
            ("moving.webp", encoded("WEBP", save_all=True, append_images=[gradient().rotate(180)], quality=95)),
            ("moving.png", encoded("PNG", save_all=True, append_images=[gradient().rotate(180)])),
            ("deep.png", cv2.imencode(".png", rgb[..., ::-1].astype(np.uint16) * 257)[1].tobytes())):
        (tmp_path / name).write_bytes(content)
        assert np.abs(load_photo(tmp_path / name).astype(int) - rgb).mean() < 4, name


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_dark_photo_of_sixteen_bits_stays_as_dark_as_opencv_has_it(tmp_path, name):
    cv2.imwrite(str(tmp_path / name), np.arange(0, 9_600, 15, dtype=np.uint16).reshape(20, 32))
    expected = cv2.imread(str(tmp_path / name)).astype(int)
    assert expected.max() < 40 and np.abs(load_photo(tmp_path / name) - expected).max() <= 1


@pytest.mark.parametrize("top", [1, 255, 65_535])
def test_greys_in_floats_keep_their_order_and_range(tmp_path, top):
    ramp = np.linspace(0, top, 768, dtype=np.float32).reshape(24, 32)
    found = saved(tmp_path / "a.tif", Image.fromarray(ramp))
    assert np.abs(found[..., 0] - ramp * (255 / top)).max() <= 1
    for odd in (np.nan, np.inf, -np.inf):
        ramp[0, 0] = odd
        assert saved(tmp_path / "a.tif", Image.fromarray(ramp)).shape == (24, 32, 3)


@pytest.mark.parametrize("cut", [1, 2, 9])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_jpeg_may_lack_its_end_but_not_half_of_it(tmp_path, cut, subsampling):
    noise = np.random.default_rng(0).integers(60, 200, (120, 160, 3)).astype(np.uint8)
    jpeg = encoded("JPEG", Image.fromarray(noise), subsampling=subsampling, quality=95)
    whole = np.asarray(Image.open(io.BytesIO(jpeg)))
    (tmp_path / "a.jpg").write_bytes(jpeg[:-cut])
    found = load_photo(tmp_path / "a.jpg")
    assert np.array_equal(found[:102], whole[:102]) and (cut > 2 or np.array_equal(found, whole))
    for share in (3, 5, 8):
        (tmp_path / "a.jpg").write_bytes(jpeg[:len(jpeg) * share // 10])
        refused(lambda: load_photo(tmp_path / "a.jpg"), "a.jpg: the photo does not decode (image file is truncated",
                "; fetch it again")


def test_pillows_warnings_are_not_for_users(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\0"))
    code = "from capture_lib.catalog.photos import load_photo; print(load_photo('a.jpg').shape)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
                         env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (run.stdout, run.stderr) == ("(24, 32, 3)\n", "")


@pytest.mark.filterwarnings("ignore")  # of Pillow, about damaged tags
def test_damaged_exif_data_do_not_matter(tmp_path):
    exif = Image.Exif()
    exif[274], exif[271], exif[282] = 6, "maker", 72.0
    exif.get_ifd(34665)[33434] = 0.01
    rng = np.random.default_rng(1)
    for _ in range(200):
        damaged = bytearray(exif.tobytes())
        for place in rng.integers(6, len(damaged), 4):
            damaged[place] = rng.integers(256)
        (tmp_path / "a.jpg").write_bytes(encoded("JPEG", exif=bytes(damaged)))
        assert load_photo(tmp_path / "a.jpg").shape in ((24, 32, 3), (32, 24, 3))


def test_heic_is_read_where_the_extra_is_installed(tmp_path):
    pytest.importorskip("pillow_heif")
    rgb = np.asarray(gradient(size=(64, 64)))
    assert np.abs(saved(tmp_path / "a.heic", gradient(size=(64, 64)), quality=95).astype(int) - rgb).mean() < 4


# ---- sizes


def test_a_few_bytes_are_no_photo_of_many_pixels(tmp_path):
    dot = encoded("GIF", Image.new("P", (1, 1)))
    (tmp_path / "a.gif").write_bytes(dot[:6] + struct.pack("<HH", 9_999, 9_999) + dot[10:])
    refused(lambda: load_photo(tmp_path / "a.gif"), "a.gif: 9999×9999 pixels are too many", "20,000 a byte")
    blank = Image.new("RGB", (2_000, 2_000), "white")
    for kind in ("PNG", "WEBP", "AVIF", "GIF", "JPEG"):
        assert load_photo(io.BytesIO(encoded(kind, blank))).min() > 250


def test_a_decompression_bomb_is_refused_unread(tmp_path):
    Image.new("1", (20_000, 6_000)).save(tmp_path / "a.png")  # 120 million pixels, a few kilobytes
    refused(lambda: load_photo(tmp_path / "a.png"), "a.png: 20000×6000 pixels are too many", "100,000,000")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "b.tif", compression="group4")
    refused(lambda: load_photo(tmp_path / "b.tif"), "b.tif: 20000×10000 pixels are too many")
    wide, high = struct.pack("<HH", 32, 24), struct.pack(">HH", 24, 32)
    for name, content in (("c.gif", encoded("GIF").replace(wide, struct.pack("<HH", 50_000, 50_000), 1)),
                          ("d.jpg", encoded("JPEG").replace(high, struct.pack(">HH", 50_000, 50_000)))):
        (tmp_path / name).write_bytes(content)
        refused(lambda name=name: load_photo(tmp_path / name), f"{name}: 50000×50000 pixels are too many")


def test_a_jpeg_may_be_as_large_as_phones_make_them(tmp_path, monkeypatch):
    assert photos.MAX_JPEG_PIXELS >= 16_320 * 12_240
    monkeypatch.setattr(photos, "MAX_PIXELS", 700)
    monkeypatch.setattr(photos, "MAX_JPEG_PIXELS", 768)
    assert saved(tmp_path / "a.jpg", gradient()).shape == (24, 32, 3)
    refused(lambda: saved(tmp_path / "b.jpg", gradient(size=(33, 24))), "b.jpg: 33×24 pixels are too many")
    refused(lambda: saved(tmp_path / "a.png", gradient()), "a.png: 32×24 pixels are too many")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not say what a process took")
@pytest.mark.parametrize("turned", [False, True])
def test_the_largest_photo_takes_few_bytes_a_pixel(tmp_path, turned):
    exif = Image.Exif()
    exif[274] = 6 if turned else 1
    Image.new("RGB", (6_000, 4_000), "tan").save(tmp_path / "a.jpg", exif=exif)
    code = """
import re
from pathlib import Path
from capture_lib.catalog.photos import load_photo
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
photo = load_photo(Path("a.jpg"))
print(1024 * (peak() - before) / photo[..., 0].size)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
                         env=environment)
    assert 3 < float(run.stdout) < 10  # so 94 million pixels take less than a gigabyte


# ---- what is no photo


def test_missing_empty_and_foreign_files_are_named(tmp_path):
    refused(lambda: load_photo(tmp_path / "no.jpg"), "no.jpg: no such photo")
    refused(lambda: load_photo(tmp_path), f"{tmp_path}: the photo does not decode: it is a folder")
    for name, content, kind in (
            ("empty.jpg", b"", "an empty file; copy"), ("text.png", "中文".encode("gbk"), "a text"),
            ("page.jpg", b"<html>403</html>", "a web page"), ("page3.jpg", b"<html><body><svg></svg>", "a web page"),
            ("page2.jpg", b"\xef\xbb\xbf\n<!DOCTYPE html>", "a web page"),
            ("error.jpg", b'<?xml version="1.0"?><Error>', "XML"),
            ("json.jpg", b'{"error": "gone"}', "JSON"),
            ("pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "`git lfs pull`"),
            ("phone.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300), "HEIC photo; `pip install pillow-heif`"),
            ("phone2.jpg", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(300), "a HEIC photo"),
            ("clip.jpg", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "a video, a PDF or an archive"),
            ("clip2.jpg", b"\x1aE\xdf\xa3\1", "a video"), ("paper.jpg", b"%PDF-1.7\n\0", "a PDF"),
            ("drawing.jpg", b"<svg/>", "SVG"), ("many.jpg", b"PK\3\4\x14\0", "an archive"),
            ("noise.jpg", bytes(99), "damaged, or of an unknown kind")):
        (tmp_path / name).write_bytes(content)
        refused(lambda name=name: load_photo(tmp_path / name), f"{name}: the photo does not decode: it is ", kind)
        refused(lambda name=name: load_photo(io.BytesIO((tmp_path / name).read_bytes())), kind)


@pytest.mark.filterwarnings("ignore")  # of Pillow, about damaged tags
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
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
