"""Two Albumentations transforms: `PadCrop` (pad and random crop in one) and a light `Cutout`."""
import albumentations as A
import cv2

__all__ = ["Cutout", "PadCrop"]


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
        img = img.copy()
        for y, x in corners: img[y:y + self.size, x:x + self.size] = self.fill
        return img
