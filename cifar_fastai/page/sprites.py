"""Pictures and maps as images inside a page: many small ones on one sheet, as a data URI.

    sheet = picture_sheet(pictures)          # Sheet(uri, side, columns): tile k at column k % columns …
    map_sheet(maps)                          # grey, 32 levels: a script lays colours over it
"""
import base64
import io
from dataclasses import asdict, dataclass

import numpy as np

__all__ = ["COLUMNS", "Sheet", "map_sheet", "picture_sheet"]

COLUMNS = 32
WEBP_SIDE = 16_383 # pixels, the most that WebP takes
LEVELS = 32        # of a map: heat has no more steps that an eye tells apart


@dataclass(frozen=True)
class Sheet:
    "An image with tiles of one size, from left to right and from top to bottom"
    uri: str
    width: int         # of a tile, pixels
    height: int
    columns: int
    n: int

    def as_dict(self) -> dict: return asdict(self)


def picture_sheet(
    pictures: np.ndarray,     # (N,H,W,3) uint8
    quality: int = 85,        # of WebP
) -> Sheet:
    "Pictures in colour"
    return _sheet(pictures, "RGB", "WEBP", quality=quality, method=4)


def map_sheet(
    maps: np.ndarray,         # (N,h,w) in 0…1
) -> Sheet:
    "Maps in grey"
    levels = np.round(np.clip(maps, 0, 1) * (LEVELS - 1)) * (255 / (LEVELS - 1))
    return _sheet(levels.round().astype(np.uint8), "L", "PNG", optimize=True)


def _sheet(tiles: np.ndarray, mode: str, form: str, **how) -> Sheet:
    from PIL import Image
    n, (h, w), rest = len(tiles), tiles.shape[1:3], tiles.shape[3:]
    columns = min(max(COLUMNS, -(-n // (WEBP_SIDE // h))), max(n, 1))
    rows = -(-max(n, 1) // columns)
    wide = np.zeros((rows * columns, h, w, *rest), np.uint8)
    wide[:n] = tiles
    wide = wide.reshape(rows, columns, h, w, *rest).swapaxes(1, 2).reshape(rows * h, columns * w, *rest)
    file = io.BytesIO()
    Image.fromarray(wide, mode).save(file, form, **how)
    kind = form.lower()
    return Sheet(f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}", w, h, columns, n)
