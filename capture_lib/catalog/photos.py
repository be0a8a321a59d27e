"""Reading photos of any kind that shops hand out, and refusing the rest in one line."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from capture_lib.utils import InputError

MAX_PIXELS = 100_000_000  # beyond: a decompression bomb, or of no use here
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")  # no decoder that starts a program


def load_photo(path: Path) -> np.ndarray:
    """Return a photo upright as (H, W, 3) uint8 RGB; InputError: no such file, undecodable, too large."""
    try:
        with Image.open(path, formats=FORMATS) as photo:
            if photo.width * photo.height <= MAX_PIXELS:
                return to_rgb(ImageOps.exif_transpose(photo))
    except FileNotFoundError:
        raise InputError(f"{path}: no such photo") from None
    except Exception as error:  # the decoders raise OSError, SyntaxError, ValueError, RuntimeError …
        reason = str(error).split("\n")[0]
        raise InputError(f"{path}: the photo does not decode ({reason:.80})") from None
    raise InputError(f"{path}: {photo.width}×{photo.height} pixels are too many; make the photo smaller")


def fit(photo: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W, C) so that its longer side is `size` pixels."""
    scale = size / max(photo.shape[:2])
    shape = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
    return cv2.resize(photo, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def to_rgb(photo: Image.Image) -> np.ndarray:
    """Return a photo of any Pillow mode as (H, W, 3) uint8, transparency laid on white."""
    if photo.mode.startswith("I"):  # 16 and 32 bit greys, which Pillow would clip at 255
        wide = np.asarray(photo, dtype=np.float64)
        photo = Image.fromarray((wide * (255 / max(wide.max(), 1))).astype(np.uint8))
    if photo.mode in ("RGBA", "LA", "PA") or "transparency" in photo.info:
        photo = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo)
    return np.asarray(photo.convert("RGB"))
