"""Augmentation: Albumentations as a fastai item transform, and the named policies of the recipes.

    aug = policy.pad_crop_flip_cutout(pad=4, cutout=8)   # or any A.Compose, or a list of its transforms
    block = DataBlock(..., item_tfms=AlbumentationsTransform(aug))

Albumentations ignores the global seeds, and in worker processes every worker and every epoch replays the
same draws. Here the draws come from a key: our loader gives (seed, epoch, place in its order); elsewhere each
picture draws its key from Python's `random`, which fastai seeds anew for each worker and epoch.
"""
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import count

import albumentations as A
import cv2
import numpy as np
import torch
from fastai.vision.augment import RandTransform
from fastai.vision.core import LabeledBBox, PILImage, PILMask, TensorBBox, TensorMask, TensorPoint

from .. import policy
from ..errors import InputError
from ..policy import Policy
from .transforms import AlternatingFlip, Cutout, PadCrop, SizeByEpoch

__all__ = ["AlbumentationsTransform", "augmenter", "build_augmentation", "draw_from", "drawing_from",
           "one_thread", "placed_in"]

BLOCK = 16   # pictures that draw from one key: an epoch cut into other batches of multiples of it is the same


@contextmanager
def one_thread() -> Iterator[None]:
    "Keep OpenCV to one thread for a while: one picture is too small to share"
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try: yield
    finally: cv2.setNumThreads(threads)


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
    if any(side > size for _, side in p.sizes):
        raise InputError(f"sizes={p.sizes} go above the {size}-pixel pictures. Make them smaller.")
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
    if p.flip == "alternate": tfms.append(AlternatingFlip(p=1.0))
    elif p.flip: tfms.append(A.HorizontalFlip(p=p.flip))
    if p.cutout: tfms.append(Cutout(p.cutout, holes=p.holes, fill=fill, p=p.cutout_p))
    if p.sizes: tfms.append(SizeByEpoch(p.sizes))
    return tfms


def _leaves(t):
    if not isinstance(t, A.BaseCompose): return [t]
    return [leaf for child in t.transforms for leaf in _leaves(child)]


def placed_in(aug: A.Compose | None) -> list:
    "The transforms of `aug` that want to know (seed, epoch, index) of each picture, as `place`"
    return [t for t in _leaves(aug) if hasattr(t, "place")] if aug is not None else []


def draw_from(
    aug: A.Compose,   # its draws, and those of all its parts, come from one stream from here on
    *key: int,        # non-negative integers: (seed, epoch, place) or one number
) -> None:
    "Make the next draws of `aug` a function of `key` alone (13 µs; by `Compose(seed=)` all parts draw alike)"
    bits = np.random.SeedSequence(key).generate_state(4)
    numpy_draws = np.random.Generator(np.random.PCG64(bits[:2]))
    aug.set_random_state(numpy_draws, random.Random(int(bits[2]) << 32 | int(bits[3])))


PLACED = (PILMask, TensorMask, TensorPoint, TensorBBox, LabeledBBox)    # labels that lie in the picture


class AlbumentationsTransform(RandTransform):
    """Albumentations as a fastai item transform, for PIL pictures in any DataBlock. Labels pass untouched.
    Must end in pictures (uint8, H×W×3 or H×W): normalise with a batch transform.
    Raises: InputError beside masks, points, boxes or a picture as target, which would no longer fit."""
    split_idx, order = None, 2

    def __init__(
        self,
        train,            # policy, A.Compose or list of transforms for the training pictures
        valid=None,       # the same for the others; None: they stay as they are
        size: int = 32,   # side of the pictures, pixels
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
        if not (isinstance(b, tuple) and self.aug): return
        placed = [o for o in b if isinstance(o, PLACED)]
        if placed:
            kind = type(placed[0]).__name__
            raise InputError(f"AlbumentationsTransform would change the picture, not the {kind} that lies "
                             "in it. Use fastai's own item transforms.")
        if len(b) > 1 and isinstance(b[-1], PILImage):
            raise InputError("AlbumentationsTransform would change the picture that is the target in another "
                             "way than its input. Use fastai's own item transforms.")

    def encodes(self, img: PILImage):
        if self.aug is None: return img
        if not self.keyed: draw_from(self.aug, random.getrandbits(64))
        with one_thread(): return type(img).create(augmenter(self.aug)(np.asarray(img)))


def augmenter(aug: A.Compose) -> Callable[[np.ndarray], np.ndarray]:
    "`aug` as a function of one picture; its transforms one by one where `Compose` would only add its checks"
    plain = type(aug) is A.Compose and aug.p == 1 and not aug.processors and not aug.save_applied_params
    if not plain: return lambda image: aug(image=image)["image"]
    steps = [_step(t) for t in aug.transforms]

    def run(image):
        image = np.ascontiguousarray(image)
        for step in steps: image = step(image)
        return image
    return run


def _step(t) -> Callable[[np.ndarray], np.ndarray]:
    "One transform, or one group of them, as a function of a picture"
    kind, base = type(t), A.BasicTransform
    usual = isinstance(t, base) and kind.__call__ is base.__call__ and t.targets.get("image") == t.apply and \
        kind.apply_with_params is base.apply_with_params
    if not usual or t.replay_mode or t.deterministic or t.targets_as_params:
        return lambda image: t(image=image)["image"]
    if kind is A.CoarseDropout and not isinstance(t.fill, str): return partial(_coarse_dropout, t)
    return partial(_call, t)


def _call(t, image):
    "What `BasicTransform.__call__` does to a lone picture"
    if not t.should_apply(): return image
    data = {"image": image}
    t.params = t.update_transform_params(t.get_params(), data)
    t.params.update(t.get_params_dependent_on_data(t.params, data))
    return np.ascontiguousarray(t.apply(image, **t.params))


def _coarse_dropout(t, image):
    """`CoarseDropout` with a colour as fill: the same draws, number by number and not array by array, and no
    generator for random fills"""
    fill, channels = np.array(t.fill, image.dtype), image.shape[2] if image.ndim == 3 else 1
    if fill.size not in (1, channels): return t(image=image)["image"]   # it says what is wrong
    if not t.should_apply(): return image
    (h, w), draw, out = image.shape[:2], t.random_generator.integers, image.copy()
    n = range(t.py_random.randint(*t.num_holes_range))
    high, wide = _side(t, t.hole_height_range, h, n), _side(t, t.hole_width_range, w, n)
    top, left = [int(draw(0, h - s + 1)) for s in high], [int(draw(0, w - s + 1)) for s in wide]
    draw(0, 2**32 - 1)      # what random fills would be seeded with: the stream goes on from behind it
    for y, x, dy, dx in zip(top, left, high, wide): out[y:y + dy, x:x + dx] = fill
    return out


def _side(t, limits, length: int, n: range) -> list[int]:
    "Heights or widths of the holes: in pixels, or as a share of `length`"
    draw = t.random_generator
    if t.hole_height_range[1] < 1: return [int(length * draw.uniform(*limits)) for _ in n]
    low, high = int(limits[0]), int(min(limits[1], length) + 1)
    return [int(draw.integers(low, high)) for _ in n]


@contextmanager
def drawing_from(
    tfms,                   # `AlbumentationsTransform`s
    key: tuple[int, int],   # (seed, epoch)
    start: int,             # place of the first picture in the epoch's order
    split_idx: int | None,  # subset, 0: training
    grown: bool = False,    # pictures that grow by epochs have their last size: for predictions
) -> Iterator[Callable[[int], None]]:
    """Every draw of the item transforms inside is a function of `key` and of the place in the epoch's order,
    block by block; what draws from the process's own generators goes by `start` alone, and they are as before
    afterwards. Gives a function that announces a picture by its index"""
    bits = np.random.SeedSequence((*key, start)).generate_state(2)
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(int(bits[0])), np.random.seed(bits[1])
    torch.random.default_generator.manual_seed(int(bits[0]))
    augs = [aug for t in tfms if (aug := t.of(split_idx)) is not None]
    placed = [p for aug in augs for p in placed_in(aug) if not (grown and isinstance(p, SizeByEpoch))]
    position = count(start)

    def place(index: int) -> None:
        k = next(position)
        if k == start or k % BLOCK == 0:
            for aug in augs: draw_from(aug, *key, k)
        for t in placed: t.place = (*key, index)
    for t in tfms: t.keyed = True
    try: yield place
    finally:
        random.setstate(before[0]), np.random.set_state(before[1])
        torch.random.set_rng_state(before[2])
        for t in tfms: t.keyed = False
        for t in placed: t.place = None
