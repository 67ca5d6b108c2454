"""Read a picture file into RGB pixels, by one rule for training and inference.

    read_picture("cat.png")                     # (32,32,3) uint8
    read_picture(upload_bytes, size=64)"""
import io
import os
from functools import lru_cache

import numpy as np

from ..errors import InputError

__all__ = ["RULE", "SUFFIXES", "read_picture"]

RULE = 2                   # raise it when `read_picture` changes a value: cached pictures are read again
MAX_PIXELS = 89_478_485    # Pillow's own mark for a decompression bomb (a quarter of a gigabyte of RGB)
DARK = 32                  # of 255: ink is black below this mean of the brightest channel, by alpha
SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".webp", ".avif", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".pcx", ".jp2"))
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "AVIF", "TIFF", "PPM", "TGA", "ICO", "PCX", "JPEG2000")
# not EPS and WMF: to show those Pillow runs other programs


def read_picture(
    source,            # path, bytes, PIL image, array (H,W[,1|3|4]) of uint8, uint16, bool, float in 0…1
    size: int | None = 32,   # the side of the result; None: the picture's own height and width
    name: str = "",    # what messages call it; else its path
) -> np.ndarray:       # (size,size,3) uint8
    """One picture by one rule: first frame; turned as EXIF says; 16 bits scaled to 8; palette, grey and CMYK
    to RGB; transparent parts over black, or over white where what is seen is black itself (a mean below
    `DARK`); then the whole picture, nothing cut off, squeezed to a square by PIL's antialiased bilinear
    filter (a JPEG is decoded at the smallest scale that is ≥ 4 × `size`).
    Raises: InputError with the picture's name where it is damaged, too large or no picture"""
    path = source if isinstance(source, str | os.PathLike) else None
    name = name or path or f"picture ({type(source).__name__})"
    try: return _read(source, size)
    except FileNotFoundError as e: raise InputError(f"picture {name} is not there. Check the path.") from e
    except Exception as e:   # hostile bytes: Pillow's plugins raise some ten kinds
        what = "no picture of a known format" if type(e).__name__ == "UnidentifiedImageError" else e
        what = " ".join(str(what).split())[:200] or type(e).__name__
        raise InputError(f"cannot read {name}: {what}. Remove or replace it.") from e


@lru_cache
def _formats():
    "Those of `FORMATS` that this Pillow was built with"
    from PIL import Image
    Image.init()
    return tuple(f for f in FORMATS if f in Image.OPEN)


def _read(source, size):
    from PIL import Image
    if isinstance(source, np.ndarray): return _squeeze(_from_array(source), size)
    if isinstance(source, Image.Image): return _squeeze(source, size)
    if isinstance(source, bytes | bytearray | memoryview): source = io.BytesIO(source)
    elif not isinstance(source, str | os.PathLike): raise InputError("not a path, bytes, PIL image, array")
    with Image.open(source, formats=_formats()) as im:
        if im.width * im.height > MAX_PIXELS: raise InputError(f"{im.width}×{im.height} pixels are too many")
        if im.format == "JPEG" and size: im.draft("RGB", (4 * size, 4 * size))
        return _squeeze(im, size)


def _squeeze(im, size):
    from PIL import Image, ImageOps
    if im.format != "JPEG" or im.info.keys() & {"exif", "xmp"}: im = ImageOps.exif_transpose(im)
    im = _rgb(im)
    if size and im.size != (size, size): im = im.resize((size, size), Image.Resampling.BILINEAR)
    return np.array(im)


def _rgb(im):
    from PIL import Image
    if im.mode == "RGB" and "transparency" not in im.info: return im
    if im.mode == "F": raise InputError("32-bit float pictures have no known range")
    if im.mode.startswith("I"): im = Image.fromarray(_eight_bits(np.asarray(im)))
    if im.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in im.info:
        im = im.convert("RGBA")
        ground = (255, 255, 255, 255) if _is_dark(np.asarray(im)) else (0, 0, 0, 255)
        return Image.alpha_composite(Image.new("RGBA", im.size, ground), im).convert("RGB")
    return im.convert("RGB")


def _is_dark(a):
    "Whether the visible pixels of an (H,W,4) picture, laid on black, could not be told from it"
    alpha = a[..., 3].astype(np.int64)
    return bool((a[..., :3].max(-1) * alpha).sum() < DARK * alpha.sum())


def _eight_bits(a):
    "0…65535 → 0…255, rounded"
    if a.min() < 0 or a.max() > 65535: raise InputError(f"values {a.min()}…{a.max()}, expected 0…65535")
    return ((a.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _from_array(a):
    from PIL import Image
    if a.ndim == 3 and a.shape[2] == 1: a = a[..., 0]
    if a.ndim not in (2, 3) or (a.ndim == 3 and a.shape[2] not in (3, 4)) or not a.size:
        raise InputError(f"shape {a.shape}, expected (H,W), (H,W,3) or (H,W,4)")
    if a.dtype == bool: a = a * np.uint8(255)
    elif a.dtype == np.uint16: a = _eight_bits(a)
    elif a.dtype.kind == "f":
        if not ((a >= 0) & (a <= 1)).all(): raise InputError("floats that are not in 0…1")
        a = np.rint(a * 255).astype(np.uint8)
    elif a.dtype != np.uint8: raise InputError(f"{a.dtype} values, expected uint8, uint16, bool or float")
    return Image.fromarray(np.ascontiguousarray(a))
