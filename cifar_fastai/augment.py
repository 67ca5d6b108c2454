"""Augmentation: Albumentations as a fastai item transform, and the named policies of the recipes.

    aug = policy.pad_crop_flip_cutout(pad=4, cutout=8)        # or any A.Compose, or a list of Albumentations transforms
    block = DataBlock(..., item_tfms=AlbumentationsTransform(aug))

Albumentations ignores the global seeds, and in worker processes every worker and every epoch replays the same draws. Here the
draws come from a key: our loader gives (seed, epoch, batch) once a batch; elsewhere each picture draws its key from Python's
`random`, which fastai seeds anew for each worker and epoch.
"""
import random
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace

import albumentations as A
import cv2
import numpy as np
from fastai.vision.core import PILImage
from fastai.vision.augment import RandTransform

from .errors import InputError, unknown

__all__ = ["AlbumentationsTransform", "Cutout", "Policy", "build_augmentation", "draw_from", "policy"]

cv2.setNumThreads(0)  # one picture is too small to share: threads only cost


class Cutout(A.ImageOnlyTransform):
    "Cover `holes` squares of `size`×`size` pixels with `fill` (DeVries & Taylor 2017); squares lie wholly inside the picture"
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


@dataclass(frozen=True)
class Policy:
    "A named augmentation as plain values, so that a recipe can be written down; `build` makes the Albumentations transforms"
    name: str
    pad: int = 0                # pixels added on each side before a random crop back to the picture's size
    mode: str = "reflect"       # what is padded: "reflect" or "constant" (`fill`)
    fill: float | str = "mean"  # pixel value 0…255 of constant padding, rotation corners and cutout; "mean": of the training set
    flip: float = 0.0           # probability of a horizontal flip
    cutout: int = 0             # side of a hole, pixels
    holes: tuple[int, int] = (1, 1)  # fewest and most holes
    cutout_p: float = 1.0       # probability that a picture gets holes
    rotate: float = 0.0         # degrees, drawn from ±rotate
    rotate_p: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue
    jitter_p: float = 0.5
    grey_p: float = 0.0         # probability of a picture in grey

    def __post_init__(self):
        for f in ("flip", "cutout_p", "rotate_p", "jitter_p", "grey_p"): _check_probability(f, getattr(self, f))
        if self.pad < 0 or self.cutout < 0: raise InputError(f"policy {self.name}: pad={self.pad}, cutout={self.cutout}. "
                                                             "Both are pixels, 0 or more.")
        if self.mode not in ("reflect", "constant"): raise unknown("padding mode", self.mode, ["reflect", "constant"])
        if len(self.holes) != 2 or not 0 < self.holes[0] <= self.holes[1]:
            raise InputError(f"policy {self.name}: holes={self.holes}. Give the fewest and the most, such as (1, 3).")
        if len(self.jitter) != 4: raise InputError(f"policy {self.name}: jitter={self.jitter}. Give brightness, contrast, "
                                                   "saturation and hue.")

    def but(self, **changes) -> "Policy":
        "The same policy with some values changed"
        return replace(self, **changes)

    def build(
        self,
        size: int,                          # side of the pictures, pixels
        mean: tuple[float, float, float],   # mean of the training set, 0…1 a channel; what `fill="mean"` stands for
    ) -> list[A.BasicTransform]:            # in the order of application: colour, geometry, holes
        "The Albumentations transforms of this policy"
        if self.cutout > size: raise InputError(f"cutout={self.cutout} is larger than the {size}-pixel pictures. Make it smaller.")
        if self.pad >= size and self.mode == "reflect":
            raise InputError(f"pad={self.pad} cannot be reflected from {size}-pixel pictures. Make it smaller.")
        fill = tuple(round(255 * m) for m in mean) if self.fill == "mean" else self.fill
        border = {"reflect": cv2.BORDER_REFLECT_101, "constant": cv2.BORDER_CONSTANT}[self.mode]
        tfms = []
        if any(self.jitter):
            b, c, s, h = self.jitter
            tfms.append(A.ColorJitter(brightness=(1 - b, 1 + b), contrast=(1 - c, 1 + c), saturation=(1 - s, 1 + s),
                                      hue=(-h, h), p=self.jitter_p))
        if self.grey_p: tfms.append(A.ToGray(num_output_channels=3, p=self.grey_p))
        if self.rotate: tfms.append(A.Rotate(limit=(-self.rotate, self.rotate), border_mode=border, fill=fill, p=self.rotate_p))
        if self.pad: tfms += [A.Pad(padding=self.pad, border_mode=border, fill=fill, p=1), A.RandomCrop(size, size, p=1)]
        if self.flip: tfms.append(A.HorizontalFlip(p=self.flip))
        if self.cutout: tfms.append(Cutout(self.cutout, holes=self.holes, fill=fill, p=self.cutout_p))
        return tfms

    def as_dict(self) -> dict:
        "Plain values for recipe.json"
        return asdict(self)


def _check_probability(field: str, p: float) -> None:
    if not 0 <= p <= 1: raise InputError(f"{field}={p} is not a probability. Give a number from 0 to 1.")


def _none() -> Policy:
    "Pictures as they are"
    return Policy("none")


def _pad_crop(pad: int = 4, **more) -> Policy:
    "Pad by reflection and crop at random"
    return Policy("pad_crop", pad=pad, **more)


def _pad_crop_flip(pad: int = 4, flip: float = 0.5, **more) -> Policy:
    "… and mirror half of the pictures"
    return Policy("pad_crop_flip", pad=pad, flip=flip, **more)


def _pad_crop_flip_cutout(pad: int = 4, flip: float = 0.5, cutout: int = 8, **more) -> Policy:
    "… and cover a square with the mean colour"
    return Policy("pad_crop_flip_cutout", pad=pad, flip=flip, cutout=cutout, **more)


policy = SimpleNamespace(none=_none, pad_crop=_pad_crop, pad_crop_flip=_pad_crop_flip,
                         pad_crop_flip_cutout=_pad_crop_flip_cutout)


def build_augmentation(
    aug,                   # None, a policy or its name, an `A.Compose`, one Albumentations transform or a list of them
    size: int,             # side of the pictures, pixels
    mean: tuple = (0.5, 0.5, 0.5),  # of the training set, 0…1
) -> A.Compose:
    """Whatever `aug` is, as one checked `A.Compose`.
    Raises: InputError for an unknown policy, or arguments that Albumentations would drop with no more than a warning."""
    if aug is None: aug = []
    if isinstance(aug, str):
        if aug not in vars(policy): raise unknown("augmentation policy", aug, vars(policy))
        aug = vars(policy)[aug]()
    if isinstance(aug, Policy): aug = aug.build(size, mean)
    if not isinstance(aug, A.Compose): aug = A.Compose(list(aug) if isinstance(aug, (list, tuple)) else [aug])
    for t in _leaves(aug):
        if not isinstance(t, A.BasicTransform):
            raise InputError(f"augmentation holds {t!r}, which is no Albumentations transform. Give transforms of albumentations.")
        if getattr(t, "invalid_args", None):
            raise InputError(f"{type(t).__name__} does not know the argument {', '.join(t.invalid_args)} and would drop it. "
                             "See the documentation of albumentations 2 for its names.")
    aug.strict = True
    return aug


def _leaves(t):
    return [leaf for child in t.transforms for leaf in _leaves(child)] if isinstance(t, A.BaseCompose) else [t]


def draw_from(
    aug: A.Compose,   # its draws, and those of all its parts, come from one stream from here on
    *key: int,        # non-negative integers: (seed, epoch, batch) or one number
) -> None:
    "Make the next draws of `aug` a function of `key` alone (13 µs: `Compose(seed=)` would give every part the same stream)"
    bits = np.random.SeedSequence(key).generate_state(4)
    aug.set_random_state(np.random.Generator(np.random.PCG64(bits[:2])), random.Random(int(bits[2]) << 32 | int(bits[3])))


class AlbumentationsTransform(RandTransform):
    """Albumentations as a fastai item transform, for PIL pictures in any DataBlock. Other items, such as labels, pass untouched.
    Must end in pictures (uint8 or float, H×W×3 or H×W): normalise with a batch transform."""
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

    def encodes(self, img: PILImage):
        if self.aug is None: return img
        if not self.keyed: draw_from(self.aug, random.getrandbits(64))
        return type(img).create(self.aug(image=np.asarray(img))["image"])
