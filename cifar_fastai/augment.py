"""Augmentation: Albumentations as a fastai item transform, and the named policies of the recipes.

    aug = policy.pad_crop_flip_cutout(pad=4, cutout=8)   # or any A.Compose, or a list of its transforms
    block = DataBlock(..., item_tfms=AlbumentationsTransform(aug))

Albumentations ignores the global seeds, and in worker processes every worker and every epoch replays the
same draws. Here the draws come from a key: our loader gives (seed, epoch, batch) once a batch; elsewhere each
picture draws its key from Python's `random`, which fastai seeds anew for each worker and epoch.
"""
import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import albumentations as A
import cv2
import numpy as np
from fastai.vision.augment import RandTransform
from fastai.vision.core import LabeledBBox, PILImage, PILMask, TensorBBox, TensorMask, TensorPoint

from . import policy
from .augmenter import augmenter
from .errors import InputError
from .policy import Policy

__all__ = ["AlbumentationsTransform", "Cutout", "PadCrop", "build_augmentation", "draw_from",
           "one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    "Keep OpenCV to one thread for a while: one picture is too small to share"
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try: yield
    finally: cv2.setNumThreads(threads)


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


def build_augmentation(
    aug,                   # None, a policy or its name, an `A.Compose`, one transform or a list of them
    size: int,             # side of the pictures, pixels
    mean: tuple = (0.5, 0.5, 0.5),  # of the training set, 0…1
) -> A.Compose:
    """Whatever `aug` is, as one checked `A.Compose`.
    Raises: InputError for an unknown policy, or arguments that Albumentations would drop with a warning."""
    if aug is None: aug = []
    if isinstance(aug, str): aug = policy.named(aug)
    if isinstance(aug, Policy): aug = _transforms(aug, size, mean)
    if isinstance(aug, A.Compose): aug = deepcopy(aug)      # its draws and checks are set below
    else:
        aug = list(aug) if isinstance(aug, (list, tuple)) else [aug]
        for t in aug:
            if not isinstance(t, (A.BasicTransform, A.BaseCompose)):
                raise InputError(f"augmentation holds {t!r}, which is no Albumentations transform. "
                                 "Give transforms of albumentations.")
        aug = A.Compose(aug)
    for t in _leaves(aug):
        if type(t).__name__ in ("Normalize", "ToTensorV2", "ToTensor3D"):
            raise InputError(f"augmentation holds {type(t).__name__}, but normalisation comes last, on the "
                             "device. Leave it out.")
        if getattr(t, "invalid_args", None):
            raise InputError(f"{type(t).__name__} does not know the argument {', '.join(t.invalid_args)} and "
                             "would drop it. See the documentation of albumentations 2 for its names.")
    aug.strict = True
    return aug


def _transforms(
    p: Policy,
    size: int,                          # side of the pictures, pixels
    mean: tuple[float, float, float],   # of the training set, 0…1: what `fill="mean"` stands for
) -> list[A.BasicTransform]:            # in the order of application: colour, geometry, holes
    "The Albumentations transforms that a policy names"
    if p.cutout > size:
        raise InputError(f"cutout={p.cutout} is larger than the {size}-pixel pictures. Make it smaller.")
    if p.pad >= size and p.mode == "reflect":
        raise InputError(f"pad={p.pad} cannot be reflected from {size}-pixel pictures. Make it smaller.")
    fill = tuple(round(255 * m) for m in mean) if p.fill == "mean" else p.fill
    modes = {"reflect": cv2.BORDER_REFLECT_101, "constant": cv2.BORDER_CONSTANT}
    border = {"border_mode": modes[p.mode], "fill": fill}
    tfms = []
    if any(p.jitter):
        b, c, s, h = p.jitter
        tfms.append(A.ColorJitter((1 - b, 1 + b), (1 - c, 1 + c), (1 - s, 1 + s), (-h, h), p=p.jitter_p))
    if p.grey_p: tfms.append(A.ToGray(num_output_channels=3, p=p.grey_p))
    if p.rotate: tfms.append(A.Rotate(limit=(-p.rotate, p.rotate), p=p.rotate_p, **border))
    if p.pad: tfms.append(PadCrop(p.pad, **border))
    if p.flip: tfms.append(A.HorizontalFlip(p=p.flip))
    if p.cutout: tfms.append(Cutout(p.cutout, holes=p.holes, fill=fill, p=p.cutout_p))
    return tfms


def _leaves(t):
    if not isinstance(t, A.BaseCompose): return [t]
    return [leaf for child in t.transforms for leaf in _leaves(child)]


def draw_from(
    aug: A.Compose,   # its draws, and those of all its parts, come from one stream from here on
    *key: int,        # non-negative integers: (seed, epoch, batch) or one number
) -> None:
    "Make the next draws of `aug` a function of `key` alone (13 µs; by `Compose(seed=)` all parts draw alike)"
    bits = np.random.SeedSequence(key).generate_state(4)
    numpy_draws = np.random.Generator(np.random.PCG64(bits[:2]))
    aug.set_random_state(numpy_draws, random.Random(int(bits[2]) << 32 | int(bits[3])))


PLACED = (PILMask, TensorMask, TensorPoint, TensorBBox, LabeledBBox)    # labels that lie in the picture


class AlbumentationsTransform(RandTransform):
    """Albumentations as a fastai item transform, for PIL pictures in any DataBlock. Labels pass untouched.
    Must end in pictures (uint8 or float, H×W×3 or H×W): normalise with a batch transform.
    Raises: InputError beside masks, points or boxes, which would no longer fit their picture."""
    split_idx, order = None, 2

    def __init__(
        self,
        train,            # policy, A.Compose or list of transforms for the training pictures
        valid=None,       # the same for the others; None: they stay as they are
        size: int = 32,   # side of the pictures, pixels: a policy crops to it
        mean: tuple = (0.5, 0.5, 0.5),  # colour that a policy fills with, 0…1
    ):
        super().__init__(p=1.0)
        self.train = build_augmentation(train, size, mean)
        self.valid = None if valid is None else build_augmentation(valid, size, mean)
        self.keyed = False

    def of(self, split_idx: int | None) -> A.Compose | None:
        "What pictures of subset `split_idx` (0: training) go through; None: nothing"
        aug = self.train if split_idx == 0 else self.valid
        return aug if aug is not None and len(aug.transforms) else None

    def before_call(self, b, split_idx):
        self.do, self.aug = True, self.of(split_idx)
        placed = [o for o in b if isinstance(o, PLACED)] if isinstance(b, tuple) and self.aug else []
        if placed:
            kind = type(placed[0]).__name__
            raise InputError(f"AlbumentationsTransform would change the picture, not the {kind} that lies "
                             "in it. Use fastai's own item transforms.")

    def encodes(self, img: PILImage):
        if self.aug is None: return img
        if not self.keyed: draw_from(self.aug, random.getrandbits(64))
        with one_thread(): return type(img).create(augmenter(self.aug)(np.asarray(img)))
