"""Augmentation draws from a key, keeps to its pixel values, and works in any DataBlock."""
import random

import albumentations as A
import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import GrandparentSplitter, Normalize, get_image_files, parent_label
from fastai.torch_core import TensorCategory
from fastai.vision.core import PILImage, PILMask, TensorBBox, TensorPoint
from fastai.vision.data import ImageBlock
from fasttransform import Transform
from made import picture_folder, some_pixels

from cifar_fastai import policy
from cifar_fastai.errors import InputError
from cifar_fastai.loaders.augment import AlbumentationsTransform, augmenter, build_augmentation, draw_from
from cifar_fastai.loaders.block import cifar_dataloaders
from cifar_fastai.loaders.transforms import Cutout
from cifar_fastai.policy import Policy


class Noop(Transform):
    "An item transform that does nothing but take the fast road away"
    def encodes(self, x: PILImage): return x


FLIPS = [A.HorizontalFlip(p=.5), A.VerticalFlip(p=.5)]


def draws(aug, img, n, *key, size=32, mean=(.5, .5, .5)):
    "`n` augmentations of one picture, drawn from `key`"
    aug = build_augmentation(aug, size, mean)
    draw_from(aug, *(key or (0,)))
    return [augmenter(aug)(img) for _ in range(n)]


def squares_of(img, out):
    "Where `out` is not `img`: rows, columns"
    rows, cols = np.nonzero((img != out).any(2))
    return sorted(set(rows.tolist())), sorted(set(cols.tolist()))


# what is refused

@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: [t], lambda t: A.Compose([t]),
                                  lambda t: A.Compose([A.OneOf([A.NoOp(), t])])])
def test_an_argument_that_albumentations_would_drop_is_refused_by_name(wrap):
    with pytest.warns(UserWarning, match="nonsense"): dropped = A.HorizontalFlip(p=.5, nonsense=1)
    with pytest.raises(InputError, match="HorizontalFlip does not know the argument nonsense"):
        build_augmentation(wrap(dropped), 32)
    assert build_augmentation(wrap(A.HorizontalFlip(p=.5)), 32).strict


def test_a_strict_compose_refuses_by_itself():
    with pytest.raises(ValueError), pytest.warns(UserWarning):
        A.Compose([A.RandomCrop(8, 8, max_holes=1)], strict=True)


@pytest.mark.parametrize("aug, message", [
    ("pad_crop_flp", "Did you mean pad_crop_flip"), ([3], "holds 3, which is no Albumentations transform"),
    ([A.Normalize()], "Normalize, but normalisation comes last"),
    (policy.pad_crop_flip_cutout(cutout=40), "cutout=40 is larger than the 32-pixel"),
    (policy.pad_crop(pad=32), "pad=32 cannot be reflected from 32-pixel")])
def test_what_is_no_augmentation_is_refused(aug, message):
    with pytest.raises(InputError, match=message): build_augmentation(aug, 32)


def test_a_compose_a_list_one_transform_and_a_name_are_all_taken():
    img = some_pixels()
    for aug in (A.Compose([A.HorizontalFlip(p=1)]), [A.HorizontalFlip(p=1)], A.HorizontalFlip(p=1),
                Policy("mine", flip=1.)):
        assert (draws(aug, img, 1)[0] == img[:, ::-1]).all()
    assert (draws(None, img, 1)[0] == img).all() and (draws("none", img, 1)[0] == img).all()


# pixel values

def windows(wide, img):
    "Every crop of the size of `img` out of `wide`"
    h, w = img.shape[:2]
    return {wide[y:y + h, x:x + w].tobytes() for y in range(wide.shape[0] - h + 1)
            for x in range(wide.shape[1] - w + 1)}


def test_pad_crop_shows_every_window_of_the_reflected_picture_and_no_other():
    img = some_pixels(8, 8)
    seen = {x.tobytes() for x in draws(policy.pad_crop(pad=1), img, 100, size=8)}
    assert seen == windows(np.pad(img, ((1, 1), (1, 1), (0, 0)), "reflect"), img)
    assert seen != windows(np.pad(img, ((1, 1), (1, 1), (0, 0)), "edge"), img), "the control can fail"


@pytest.mark.parametrize("fill, value", [(0, (0, 0, 0)), (130, (130, 130, 130)), ("mean", (26, 128, 230))])
def test_a_constant_border_has_the_pixel_value_that_was_given(fill, value):
    img, mean = some_pixels(8, 8), (.1, .5, .9)
    wide = np.full((10, 10, 3), value, np.uint8)
    wide[1:9, 1:9] = img
    outs = draws(policy.pad_crop(pad=1, mode="constant", fill=fill), img, 100, size=8, mean=mean)
    assert {x.tobytes() for x in outs} == windows(wide, img)


@pytest.mark.parametrize("fill, value", [(0, (0, 0, 0)), (200, (200, 200, 200)), ("mean", (26, 128, 230))])
def test_cutout_covers_one_whole_square_with_the_value_and_leaves_the_rest(fill, value):
    img = np.full((12, 12, 3), 7, np.uint8)
    places = set()
    for out in draws(Policy("c", cutout=5, fill=fill), img, 200, size=12, mean=(.1, .5, .9)):
        rows, cols = squares_of(img, out)
        assert len(rows) == len(cols) == 5 and rows[-1] - rows[0] == cols[-1] - cols[0] == 4
        assert (out[rows[0]:rows[0] + 5, cols[0]:cols[0] + 5] == value).all()
        assert (out == img).all(2).sum() == 144 - 25
        places.add((rows[0], cols[0]))
    assert len(places) > 50 and {0, 7} <= {y for y, _ in places}, "of 64 places, the edges among them"


def test_cutout_makes_as_many_holes_as_asked_and_in_the_share_of_pictures_asked():
    img = np.full((64, 64, 3), 7, np.uint8)
    cut = Cutout(1, holes=(1, 3), fill=0, p=.5)
    counts = np.bincount([(out == 0).all(2).sum() for out in draws([cut], img, 600)], minlength=4)
    assert counts.tolist() == pytest.approx([300, 100, 100, 100], abs=50)


def test_pictures_stay_uint8_of_full_range_under_every_policy():
    img = np.zeros((32, 32, 3), np.uint8)
    img[8:24, 8:24] = 255
    for make in (policy.none, policy.pad_crop, policy.pad_crop_flip, policy.pad_crop_flip_cutout):
        p = make(rotate=15, rotate_p=1., jitter=(.3, .3, .3, .1), jitter_p=1., grey_p=.5) \
            if make is not policy.none else make()
        for out in draws(p, img, 20):
            assert out.dtype == np.uint8 and out.shape == img.shape
            assert out.max() > 120, f"not squeezed into 0…1: {p.name}"


def test_grey_makes_the_channels_equal_and_jitter_alone_does_not():
    img = some_pixels()
    grey, coloured = draws(Policy("g", grey_p=1.), img, 1)[0], \
        draws(Policy("j", jitter=(.3, .3, .3, .1), jitter_p=1.), img, 1)[0]
    assert (grey == grey[..., :1]).all() and not (coloured == coloured[..., :1]).all()
    assert (coloured != img).any()


def test_rotation_turns_by_up_to_the_angle_and_reflects_at_the_border():
    img = np.full((33, 33, 3), 90, np.uint8)
    img[16] = 255                                            # a line through the middle
    angles = []
    for out in draws(Policy("r", rotate=20, rotate_p=1.), img, 200, size=33):
        left, right = (out[:, c, 0].astype(int).argmax() for c in (8, 24))
        angles.append(np.degrees(np.arctan2(right - left, 16)))
        assert out.min() >= 60, "no black corners"
    assert 15 < max(np.abs(angles)) <= 23 and min(angles) < -10 and max(angles) > 10
    assert abs(np.mean(angles)) < 3


# draws

def share_of_each_flip(outs, img):
    kinds = [img, img[:, ::-1], img[::-1], img[::-1, ::-1]]
    return [sum((o == k).all() for o in outs) / len(outs) for k in kinds]


def test_two_flips_are_independent_of_each_other():
    img = some_pixels(8, 8)
    assert share_of_each_flip(draws(FLIPS, img, 1000), img) == pytest.approx([.25] * 4, abs=.06)


def test_control_with_albumentations_own_seed_two_flips_become_one():
    img, aug = some_pixels(8, 8), A.Compose([A.HorizontalFlip(p=.5), A.VerticalFlip(p=.5)], seed=0)
    both = share_of_each_flip([aug(image=img)["image"] for _ in range(200)], img)
    assert both[1] == both[2] == 0


def test_the_same_key_draws_the_same_and_every_other_key_other_pictures():
    img, aug = some_pixels(), policy.pad_crop_flip_cutout(jitter=(.2, .2, .2, .1), rotate=5)
    first = np.stack(draws(aug, img, 20, 1, 2, 3))
    assert (first == np.stack(draws(aug, img, 20, 1, 2, 3))).all()
    for key in ((1, 2, 4), (1, 3, 3), (2, 2, 3), (3, 2, 1)):
        assert (first != np.stack(draws(aug, img, 20, *key))).any((1, 2, 3)).mean() > .9


def test_what_ran_before_does_not_change_the_draws():
    img = some_pixels()
    aug = build_augmentation(policy.pad_crop_flip_cutout(), 32)
    for _ in range(7): augmenter(aug)(img)
    random.seed(5), np.random.seed(5)
    draw_from(aug, 9)
    again = draws(policy.pad_crop_flip_cutout(), img, 1, 9)[0]
    assert np.array_equal(augmenter(aug)(img), again)


def test_a_compose_that_is_not_always_applied_is_applied_in_that_share():
    img = some_pixels(8, 8)
    seldom = share_of_each_flip(draws(A.Compose(FLIPS[:1], p=.2), img, 1000), img)
    assert seldom == pytest.approx([.9, .1, 0, 0], abs=.04)
    one_of = share_of_each_flip(draws(A.Compose([A.OneOf(FLIPS, p=1)]), img, 1000), img)
    assert one_of == pytest.approx([0, .5, .5, 0], abs=.06)


# in a stock DataBlock

class TrainDark(Transform):
    "A stock item transform beside ours"
    split_idx = 0
    def encodes(self, x: PILImage): return x


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures of cats & dögs")
    return root, picture_folder(root, n=4)


def stock(root, aug, num_workers=0, **kwargs):
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label,
                      splitter=GrandparentSplitter("train", "test"), item_tfms=[TrainDark(), aug], **kwargs)
    return block.dataloaders(root, bs=4, num_workers=num_workers, device="cpu")


def pixels_of(x): return (x.permute(0, 2, 3, 1) * 255).round().byte().numpy()


def class_of(x, made, split, turned):
    "The class of the one picture of `split` that `x` is, within rounding"
    close = [name.split("/")[1] for name, known in made.items() if name.startswith(split)
             and np.abs((known[:, ::-1] if turned else known).astype(int) - x).max() <= 1]
    assert len(close) == 1, f"like {len(close)} pictures"
    return close[0]


def test_in_a_stock_datablock_training_pictures_are_augmented_and_the_others_are_not(folder):
    root, made = folder
    dls = stock(root, AlbumentationsTransform([A.HorizontalFlip(p=1)]))
    for dl, split, turned in ((dls.train, "train", True), (dls.valid, "test", False)):
        xb, yb = dl.one_batch()
        found = [class_of(x, made, split, turned) for x in pixels_of(xb)]
        assert found == [dls.vocab[y] for y in yb], "labels untouched"


def test_a_transform_for_validation_is_used_there_alone(folder):
    root, made = folder
    dls = stock(root, AlbumentationsTransform(None, valid=[A.VerticalFlip(p=1)]))
    originals = {x.tobytes() for x in made.values()}
    assert all(x.tobytes() in originals for x in pixels_of(dls.train.one_batch()[0]))
    assert all(x[::-1].tobytes() in originals for x in pixels_of(dls.valid.one_batch()[0]))


def test_show_batch_shows_the_pictures_unnormalised_under_their_class(folder):
    root, made = folder
    dls = stock(root, AlbumentationsTransform([A.HorizontalFlip(p=1)]),
                batch_tfms=Normalize.from_stats([.5] * 3, [.2] * 3, cuda=False))
    plt.close("all")
    dls.show_batch(max_n=4)
    shown = [ax for ax in plt.gcf().axes if ax.images]
    pictures = [np.asarray(ax.images[0].get_array()) for ax in shown]
    found = [class_of(x if x.max() > 1 else x * 255, made, "train", True) for x in pictures]
    assert found == [ax.get_title() for ax in shown] and len(shown) == 4
    plt.close("all")


class Plain(Transform):
    "Albumentations as tutorials use it: drawing from where the process stands"
    def __init__(self, aug): self.aug = A.Compose(aug)
    def encodes(self, x: PILImage): return PILImage.create(self.aug(image=np.array(x))["image"])


class OnePicture(Transform):
    "The same black picture for every item, so that all that differs is drawn"
    order = -1
    def encodes(self, x: PILImage): return PILImage.create(np.zeros((32, 32, 3), np.uint8))


def distinct(root, aug):
    "How many different pictures two workers make of 8 equal ones in each of two epochs"
    dls = stock(root, aug, num_workers=2)
    dls.train.after_item.add(OnePicture())
    return [{x.tobytes() for xb, _ in dls.train for x in pixels_of(xb)} for _ in range(2)]


SPOT = [A.PixelDropout(dropout_prob=.1, drop_value=255, p=1)]


def test_on_a_stock_loader_neither_workers_nor_epochs_repeat_the_draws(folder):
    first, second = distinct(folder[0], AlbumentationsTransform(SPOT))
    assert len(first) == len(second) == 8 and not first & second


def test_control_plain_albumentations_repeats_them(folder):
    first, second = distinct(folder[0], Plain(SPOT))
    assert len(first) < 8 or first & second


def test_fastais_seed_decides_on_a_stock_loader(folder):
    def batch(seed):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        dls = stock(folder[0], AlbumentationsTransform(policy.pad_crop_flip_cutout()))
        return pixels_of(dls.train.one_batch()[0])
    assert (batch(1) == batch(1)).all() and (batch(1) != batch(2)).any()


def test_pictures_of_one_channel_stay_so():
    from fastai.vision.core import PILImageBW
    tfm = AlbumentationsTransform([A.HorizontalFlip(p=1)])
    grey = some_pixels(c=1)
    out = tfm(PILImageBW.create(grey), split_idx=0)
    assert type(out) is PILImageBW and (np.asarray(out) == grey[:, ::-1]).all()


@pytest.mark.parametrize("aug", [policy.pad_crop_flip_cutout(cutout=6), policy.pad_crop(cutout=6, fill=7)])
def test_a_policy_covers_a_square_of_a_picture_of_one_channel_with_one_value(aug):
    from fastai.vision.core import PILImageBW
    tfm = AlbumentationsTransform(aug.but(pad=0, flip=0.), size=16, mean=(.2, .4, .6))
    out = np.asarray(tfm(PILImageBW.create(np.full((16, 16), 255, np.uint8)), split_idx=0))
    assert out.shape == (16, 16) and (out != 255).sum() == 36
    assert set(out[out != 255]) == {7 if aug.fill == 7 else 102}


def test_the_compose_that_a_user_gave_stays_as_it_was():
    given = A.Compose([A.HorizontalFlip(p=.5), A.RandomCrop(12, 12)], seed=7)
    twin = A.Compose([A.HorizontalFlip(p=.5), A.RandomCrop(12, 12)], seed=7)
    strict, picture = given.strict, np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    tfm = AlbumentationsTransform(given, size=16)
    for _ in range(5): tfm(PILImage.create(picture), split_idx=0)
    assert given.strict == strict
    for _ in range(8): assert np.array_equal(given(image=picture)["image"], twin(image=picture)["image"])


@pytest.mark.filterwarnings("ignore:Using lambda")
def test_opencv_keeps_the_threads_that_the_users_process_has(learnable):
    cv2.setNumThreads(2)
    seen = []
    look = A.Lambda(lambda x, **_: seen.append(cv2.getNumThreads()) or x, name="look")
    cifar_dataloaders(learnable, 32, look, num_workers=0, device="cpu").train.one_batch()
    AlbumentationsTransform(look)(PILImage.create(np.zeros((16, 16, 3), np.uint8)), split_idx=0)
    assert len(seen) == 33 and set(seen) == {1} and cv2.getNumThreads() == 2


@pytest.mark.parametrize("label", [
    PILMask.create(np.zeros((16, 16), np.uint8)), TensorPoint([[3., 4.]]), TensorBBox([[1., 1., 5., 5.]])],
    ids=lambda o: type(o).__name__)
def test_labels_that_lie_in_the_picture_are_refused(label):
    picture = PILImage.create(np.zeros((16, 16, 3), np.uint8))
    tfm = AlbumentationsTransform(policy.pad_crop_flip(), size=16)
    with pytest.raises(InputError, match=f"not the {type(label).__name__} that lies in it"):
        tfm((picture, label), split_idx=0)
    assert tfm((picture, label), split_idx=1)[1] is not None, "validation pictures stay as they are"


def test_a_picture_as_target_is_refused_as_it_would_be_cropped_elsewhere():
    pair = [PILImage.create(np.zeros((16, 16, 3), np.uint8)) for _ in range(2)]
    tfm = AlbumentationsTransform(policy.pad_crop_flip(), size=16)
    with pytest.raises(InputError, match="would change the picture that is the target in another way"):
        tfm(tuple(pair), split_idx=0)
    assert tfm(tuple(pair), split_idx=1)[1] is not None, "validation pictures stay as they are"
    first, second, label = tfm((*pair, TensorCategory(1)), split_idx=0)
    assert label == 1 and first.size == second.size == (16, 16), "two views as inputs are each augmented"


PICTURE = np.random.default_rng(0).integers(1, 255, (32, 32, 3), np.uint8)
CHANCES = {"cutout_p": {"cutout": 8, "fill": 0}, "rotate_p": {"rotate": 30}, "flip": {},
           "jitter_p": {"jitter": (.4, .4, .4, .2)}, "grey_p": {}}


@pytest.mark.parametrize("chance", CHANCES)
def test_a_chance_of_a_policy_is_the_share_of_pictures_that_change(chance):
    def share(p):
        made = draws(Policy("one", **CHANCES[chance], **{chance: p}), PICTURE, 400)
        return np.mean([not np.array_equal(x, PICTURE) for x in made])
    assert share(0.) == 0 and share(1.) > .97 and abs(share(.3) - .3) < .1


# what the epoch decides

def flips(learnable, epochs, seed=0, bs=32, **kwargs):
    "Epoch → index of a training picture → whether it was mirrored"
    dls = cifar_dataloaders(learnable, bs, Policy("mirror", flip="alternate"), seed=seed, num_workers=0,
                            device="cpu", **kwargs)
    dl, plain, found = dls.train, torch.tensor(learnable.x_train).permute(0, 3, 1, 2), []
    for epoch in epochs:
        dl.set_epoch(epoch)
        seen = {}
        order = dl.get_idxs()
        dl.before_iter()                     # which tells transforms whose pictures come
        for b in range(len(dl)):
            idxs = order[b * bs:(b + 1) * bs]
            for i, x in zip(idxs, dl.make_batch((epoch, b, idxs))[0]):
                item = int(dl.dataset.items[i])
                seen[item] = torch.equal(x, plain[item].flip(2))
                assert seen[item] != torch.equal(x, plain[item])
        found.append(seen)
    return found


def test_a_picture_is_mirrored_in_every_other_epoch_from_a_start_of_its_own(learnable):
    first, second, third = flips(learnable, (0, 1, 2))
    assert all(first[i] != second[i] for i in first) and first == third and len(first) == 160
    assert 60 <= sum(first.values()) <= 100, "about half start mirrored"


def test_whether_it_is_depends_on_seed_epoch_and_index_alone(learnable):
    (a,), (b,), (other,) = flips(learnable, [3]), flips(learnable, [3], bs=16), flips(learnable, [3], seed=1)
    one_by_one, = flips(learnable, [3], item_tfms=Noop())
    assert a == b == one_by_one and sum(a[i] != other[i] for i in a) > 40


def test_without_a_loader_that_tells_the_epoch_half_are_mirrored_at_random():
    img = some_pixels(8, 8)
    found = [np.array_equal(out, img) for out in draws(Policy("mirror", flip="alternate"), img, 400, size=8)]
    assert 150 < sum(found) < 250


GROWS = Policy("grows", sizes=((0, 8), (2, 12), (3, 16)))


def test_pictures_grow_with_the_epoch_and_those_of_validation_do_not(learnable):
    dls = cifar_dataloaders(learnable, 32, GROWS, num_workers=0, device="cpu")
    sides = [[tuple(x.shape[2:]) for x, _ in dls.train] for _ in range(5)]
    assert [set(s) for s in sides] == [{(8, 8)}, {(8, 8)}, {(12, 12)}, {(16, 16)}, {(16, 16)}]
    assert {tuple(x.shape[2:]) for x, _ in dls.valid} == {(16, 16)}


def test_predictions_of_augmented_pictures_are_of_full_size(learnable, learner):
    "`tta` tells its loader the number of a view as if it were an epoch"
    learn, seen = learner(cifar_dataloaders(learnable, 32, GROWS, num_workers=0, device="cpu")), []
    learn.model.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[-1]))
    learn.tta(n=3), learn.get_preds(ds_idx=0), learn.tta(ds_idx=0, n=3)
    assert set(seen) == {16} and len(seen) > 20


def test_a_smaller_picture_is_the_mean_of_its_places(learnable):
    dls = cifar_dataloaders(learnable, 160, GROWS, num_workers=0, device="cpu", seed=3)
    batch = dls.train.make_batch((0, 0, np.arange(160)))[0].float()
    want = torch.nn.functional.avg_pool2d(torch.tensor(learnable.x_train).permute(0, 3, 1, 2).float(), 2)
    assert (batch - want[dls.train.dataset.items]).abs().max() <= .5 + 1e-4
    (last,) = draws(GROWS, learnable.x_train[0], 1, size=16)
    assert np.array_equal(last, learnable.x_train[0]), "where no loader tells the epoch: the last size"


def test_sizes_above_the_pictures_are_refused(learnable):
    with pytest.raises(InputError, match="above the 16-pixel"):
        cifar_dataloaders(learnable, 32, Policy("grows", sizes=((0, 8), (1, 32))))
