"""The short way through Albumentations draws the same numbers and gives the same pixels as its own."""
import random
import warnings

import albumentations as A
import numpy as np
import pytest
from made import some_pixels

from cifar_fastai.loaders.augment import augmenter, draw_from

PICTURE = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)


def pixels(run, t, pictures):
    "Every picture through `run`, and what the generators draw behind it"
    draw_from(A.Compose([t]), 4, 2)
    return [run(x) for x in pictures], t.random_generator.random(), t.py_random.random()


def assert_same(t, pictures=(PICTURE,) * 12):
    ours = pixels(augmenter(A.Compose([t])), t, pictures)
    theirs = pixels(lambda x: t(image=x)["image"], t, pictures)
    assert ours[1:] == theirs[1:], "the stream goes on elsewhere"
    for a, b in zip(ours[0], theirs[0]):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    return ours[0]


def every_transform():
    "The transforms for lone pictures that can be made without arguments"
    kinds = {k for k in vars(A).values()
             if isinstance(k, type) and issubclass(k, (A.DualTransform, A.ImageOnlyTransform))}
    for kind in sorted(kinds, key=lambda k: k.__name__):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try: yield kind(p=.7)
            except Exception: continue   # bases and those that need a size, a picture to mix in, a file


def test_every_transform_of_albumentations_gives_the_same_pixels_and_leaves_the_same_stream():
    tried, changed = 0, 0
    for t in every_transform():
        try: expected = t(image=PICTURE, force_apply=True)["image"]
        except Exception: continue       # needs boxes, masks, other pictures or another size
        outs, tried = assert_same(t), tried + 1
        changed += any(not np.array_equal(out, PICTURE) for out in outs) or np.array_equal(expected, PICTURE)
    assert tried > 80 and changed == tried


@pytest.mark.parametrize("holes", [(1, 1), (1, 3), (2, 5)])
@pytest.mark.parametrize("high, wide", [((8, 8), (8, 8)), ((1, 40), (3, 9)), ((.1, .2), (.2, .9)),
                                        ((32, 32), (1, 1))])
@pytest.mark.parametrize("fill", [0, 127.6, (10, 20, 30)])
def test_coarse_dropout_has_the_same_holes(holes, high, wide, fill):
    assert_same(A.CoarseDropout(holes, high, wide, fill, p=.8))


@pytest.mark.parametrize("fill", ["random", "random_uniform", "inpaint_telea"])
def test_coarse_dropout_with_another_fill_than_a_colour_goes_its_own_way(fill):
    out = assert_same(A.CoarseDropout((1, 2), (4, 8), (4, 8), fill, p=1))
    assert (out[0] != PICTURE).any()


def test_pictures_of_one_channel_and_of_floats_too():
    grey, floats = PICTURE[:, :, 0], (PICTURE / 255).astype(np.float32)
    for picture in (grey, PICTURE[:, :, :1], floats):
        assert_same(A.CoarseDropout((1, 3), (4, 8), (4, 8), fill=0.5, p=1), [picture] * 5)
        assert_same(A.HorizontalFlip(p=.5), [picture] * 5)


def test_a_fill_of_the_wrong_number_of_channels_is_told_in_albumentations_own_words():
    run = augmenter(A.Compose([A.CoarseDropout(fill=(1, 2), p=1)]))
    with pytest.raises(ValueError, match="same number of channels"): run(PICTURE)


def test_the_picture_that_is_given_stays_as_it_is():
    before = PICTURE.copy()
    run = augmenter(A.Compose([A.CoarseDropout((1, 1), (8, 8), (8, 8), p=1), A.InvertImg(p=1)]))
    assert (run(PICTURE) != before).any() and np.array_equal(PICTURE, before)


def test_what_was_drawn_can_be_asked_for():
    t = A.RandomBrightnessContrast(p=1)
    augmenter(A.Compose([t]))(PICTURE)
    assert {"alpha", "beta"} <= t.get_applied_params().keys()


def test_groups_and_compositions_of_a_kind_of_their_own_are_called_as_they_are():
    for aug in (A.Compose([A.OneOf([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)], p=1)]),
                A.Compose([A.HorizontalFlip(p=1)], p=.5), A.ReplayCompose([A.HorizontalFlip(p=.5)]),
                A.Sequential([A.HorizontalFlip(p=1)], p=1)):
        draw_from(aug, 7)
        outs = [augmenter(aug)(some_pixels()) for _ in range(20)]
        flips = sum(not np.array_equal(out, some_pixels()) for out in outs)
        assert flips == 20 if aug.p == 1 and type(aug) in (A.Compose, A.Sequential) else 2 < flips < 18


def test_a_transform_that_overrides_the_call_itself_is_called_as_it_is():
    class Twice(A.HorizontalFlip):
        def __call__(self, *args, **kwargs): return super().__call__(**super().__call__(*args, **kwargs))
    assert np.array_equal(augmenter(A.Compose([Twice(p=1)]))(PICTURE), PICTURE)


def test_the_generators_of_python_and_numpy_are_not_touched():
    random.seed(1), np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    augmenter(A.Compose([A.CoarseDropout(p=1), A.HorizontalFlip(p=.5)]))(PICTURE)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
