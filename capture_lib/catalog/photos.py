"""Reading photos of any kind that browsers and shops hand out, and refusing the rest in one line."""

import re
import warnings
from contextlib import nullcontext, suppress
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from capture_lib.utils import InputError

FORMATS = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"]  # no decoder starts a program
JPEGS = ("JPEG", "MPO")  # Pillow's names; the second, of several pictures, is what many phones write
MAX_PIXELS = 100_000_000  # beyond: a decompression bomb, or of no use here
MAX_PIXELS_A_BYTE = 20_000  # of the file: beyond, there is nothing in the photo
MAX_JPEG_PIXELS = 210_000_000  # phones' largest; decoding one takes 1.5 GB
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit would refuse it
warnings.filterwarnings("ignore", module="PIL")  # of damaged EXIF data: the photo is read without them
STRIP = 256  # rows that are converted at a time
PngImagePlugin.MAX_TEXT_CHUNK = 2**26  # bytes of a text or a profile, inflated; Pillow's own limit is 1 MB
PngImagePlugin.MAX_TEXT_MEMORY = 2**28  # of all texts
END_OF_JPEG = b"\xff\xd9"
OTHERS = (  # how files begin that are named like photos; what they are, and what to do
    (rb"\Z", "an empty file; copy or fetch it again"),
    (rb"version https://git-lfs", "a Git LFS pointer; fetch the photo with `git lfs pull`"),
    (rb".{4}ftyp(hei|hev|mif1|msf1)", "a HEIC photo; `pip install pillow-heif`, or save it as JPEG"),
    (rb".{4}ftyp(?!avi)|\x1aE\xdf\xa3|RIFF.{4}AVI |%PDF|PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf",
     "a video, a PDF or an archive; save its picture as JPEG"),
    (rb"\s*<", "a web page, SVG or XML; fetch the photo itself"),
    (rb"[\t\n\f\r\x20-\xff]+\Z", "a text, JSON for example; fetch the photo itself"))

with suppress(ImportError):  # the optional extra `heic`
    import pillow_heif
    pillow_heif.register_heif_opener()
    FORMATS.append("HEIF")


def load_photo(path: Path | BytesIO) -> np.ndarray:
    """Return a photo upright as (H, W, 3) uint8 RGB; InputError: no such file, no photo, undecodable, too large."""
    head = b""
    try:
        with nullcontext(path) if isinstance(path, BytesIO) else open(path, "rb") as file:
            head = file.read(1024)
            most = MAX_PIXELS_A_BYTE * file.seek(0, 2)
            file.seek(0)
            photo = Image.open(file, formats=FORMATS)
            limit = MAX_JPEG_PIXELS if photo.format in JPEGS else MAX_PIXELS
            if photo.width * photo.height <= min(limit, most):
                photo = decode(photo)
                with suppress(Exception):  # a damaged tag, found when the photo stands upright
                    ImageOps.exif_transpose(photo, in_place=True)
                return to_rgb(photo)
        reason = (f"{photo.width}×{photo.height} pixels are too many; make the photo smaller: "
                  f"{MAX_JPEG_PIXELS:,} at most of a JPEG, {MAX_PIXELS:,} of another, {MAX_PIXELS_A_BYTE:,} a byte")
    except FileNotFoundError:
        reason = "no such photo"
    except Exception as error:  # the decoders raise OSError, SyntaxError, ValueError, RuntimeError …
        kind = "a folder; name a file" if isinstance(error, IsADirectoryError) else what_is(head)
        if isinstance(error, UnidentifiedImageError):
            kind = kind or "damaged, or of an unknown kind; save it as JPEG"
        cause = str(error).split("\n")[0] or type(error).__name__
        reason = "the photo does not decode" + (f": it is {kind}" if kind else f" ({cause:.80}); fetch it again")
    raise InputError(f"{path}: {reason}")


def what_is(head: bytes) -> str:
    """Return what a file is that begins so, and what to do, as in "a web page; fetch …"; "" if it may be a photo."""
    head = head.removeprefix(b"\xef\xbb\xbf")  # the byte order mark of a text
    return next((kind for pattern, kind in OTHERS if re.match(pattern, head, re.S | re.I)), "")


def decode(photo: Image.Image) -> Image.Image:
    """Decode a photo; a JPEG may lack its end, as browsers show it, if a row of blocks is lost at most."""
    try:
        photo.load()
        return photo
    except OSError:
        if photo.format not in JPEGS:
            raise
        rows = (photo.im.getbbox() or (0, 0, 0, 0))[3]  # that were decoded
        photo.fp.seek(0)
        content = photo.fp.read()
        if rows < photo.height - 18 or content.endswith(END_OF_JPEG):
            raise
    return decode(Image.open(BytesIO(content + END_OF_JPEG), formats=JPEGS[:1]))


def to_rgb(photo: Image.Image) -> np.ndarray:
    """Return a decoded photo of any Pillow mode as (H, W, 3) uint8, transparency laid on white."""
    rgb = np.empty((photo.height, photo.width, 3), np.uint8)
    white = max(1, photo.getextrema()[1]) if photo.mode in ("I", "F") else 65535  # of greys
    for top in range(0, photo.height, STRIP):  # Pillow takes four bytes a pixel for every step
        strip = photo.crop((0, top, photo.width, min(top + STRIP, photo.height)))
        if strip.mode[0] in "IF":  # Pillow would clip it at 255
            grey = np.nan_to_num(np.asarray(strip, np.float64)).clip(0, white)
            strip = Image.fromarray((grey * (255 / white)).astype(np.uint8))
        if strip.mode in ("RGBA", "LA", "PA") or "transparency" in strip.info:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        rgb[top:top + STRIP] = strip.convert("RGB")
    return rgb


def fit(photo: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W, C) so that its longer side is `size` pixels."""
    scale = size / max(photo.shape[:2])
    shape = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
    return cv2.resize(photo, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
