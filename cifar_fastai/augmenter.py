"""An `A.Compose` as a function of one picture: the same draws and pixels, without what it does at each call
for masks, boxes and random fills that are not there.

    run = augmenter(aug)
    picture = run(picture)
"""
from collections.abc import Callable
from functools import partial

import albumentations as A
import numpy as np

__all__ = ["augmenter"]


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
