"""Albumentations transforms: `PadCrop` (pad and random crop in one), a light `Cutout`, and `AlternatingFlip`
and `SizeByEpoch`, which our loader tells the epoch."""
from hashlib import blake2b

import albumentations as A
import cv2

from ..policy import side_at

__all__ = ["AlternatingFlip", "Cutout", "PadCrop", "SizeByEpoch"]


class PadCrop(A.ImageOnlyTransform):
    "`Pad` and `RandomCrop` in one, at half their cost: the picture moved by up to `pad` pixels each way"
    class InitSchema(A.BasicTransform.InitSchema):
        pad: int
        border_mode: int
        fill: float | tuple[float, ...]

    def __init__(
        self,
        pad: int = 4,                             # pixels on each side
        border_mode: int = cv2.BORDER_REFLECT_101,  # of OpenCV
        fill: float | tuple[float, ...] = 0,      # pixel value (0…255) of a constant border, or one a channel
        p: float = 1.0,
    ):
        super().__init__(p=p)
        self.pad, self.border_mode, self.fill = pad, border_mode, fill
        self.value = tuple(fill) if isinstance(fill, (tuple, list)) else (fill,) * 4   # as OpenCV wants it

    def get_params(self):
        draw, n = self.py_random.random, 2 * self.pad + 1
        return {"y": int(draw() * n), "x": int(draw() * n)}

    def apply(self, img, y=0, x=0, **params):
        wide = cv2.copyMakeBorder(img, *(self.pad,) * 4, self.border_mode, value=self.value)
        return wide[y:y + img.shape[0], x:x + img.shape[1]]


class Cutout(A.ImageOnlyTransform):
    "Cover `holes` squares of `size`×`size` pixels inside the picture with `fill` (DeVries & Taylor 2017)"
    class InitSchema(A.BasicTransform.InitSchema):
        size: int
        holes: tuple[int, int]
        fill: float | tuple[float, ...]

    def __init__(
        self,
        size: int = 8,                    # side of a hole, pixels
        holes: tuple[int, int] = (1, 1),  # fewest and most holes a picture
        fill: float | tuple[float, ...] = 0,  # pixel value (0…255), or one a channel
        p: float = 1.0,                   # share of pictures that get holes
    ):
        super().__init__(p=p)
        self.size, self.holes, self.fill = size, holes, fill

    def get_params_dependent_on_data(self, params, data):
        h, w = params["shape"][:2]
        draw, s = self.py_random.random, self.size
        lo, hi = self.holes
        n = lo + int(draw() * (hi - lo + 1)) if hi > lo else lo
        return {"corners": [(int(draw() * (h - s + 1)), int(draw() * (w - s + 1))) for _ in range(n)]}

    def apply(self, img, corners=(), **params):
        img, fill = img.copy(), self.fill
        if img.ndim == 2 and isinstance(fill, tuple): fill = sum(fill) / len(fill)      # a grey picture
        for y, x in corners: img[y:y + self.size, x:x + self.size] = fill
        return img


class AlternatingFlip(A.ImageOnlyTransform):
    """Mirror each picture in every other epoch, half of them in the first one: in two epochs the net sees all
    pictures both ways (Jordan 2024). Where no loader tells the epoch, half of the pictures at random."""
    place = None            # (seed, epoch, index) of the picture that comes next

    def get_params(self):
        if self.place is None: return {"mirror": self.py_random.random() < .5}
        seed, epoch, index = self.place
        first = blake2b(b"%d %d" % (seed, index), digest_size=1).digest()[0]
        return {"mirror": (first + epoch) % 2 == 1}

    def apply(self, img, mirror=False, **params): return img[:, ::-1] if mirror else img


class SizeByEpoch(A.ImageOnlyTransform):
    "Scale pictures to the side that their epoch has. Where no loader tells the epoch, to the last side."
    place = None            # (seed, epoch, index) of the picture that comes next

    class InitSchema(A.BasicTransform.InitSchema):
        sizes: tuple[tuple[int, int], ...]

    def __init__(
        self,
        sizes: tuple[tuple[int, int], ...],    # (epoch, side in pixels), the first from epoch 0
        p: float = 1.0,
    ):
        super().__init__(p=p)
        self.sizes = sizes

    def apply(self, img, **params):
        side = self.sizes[-1][1] if self.place is None else side_at(self.sizes, self.place[1])
        return img if side == len(img) else cv2.resize(img, (side, side), interpolation=cv2.INTER_AREA)
