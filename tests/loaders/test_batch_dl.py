"""A batch is a pure function of (seed, epoch, batch number), whoever makes it."""
from pathlib import Path

import albumentations as A
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.transforms import get_image_files
from fastai.vision.core import PILImage
from fastcore.foundation import L
from fasttransform import Transform

from cifar_fastai import policy
from cifar_fastai.errors import InputError
from cifar_fastai.loaders.batch_dl import BatchDL
from cifar_fastai.loaders.block import cifar_block, cifar_dataloaders
from cifar_fastai.loaders.picture_store import LabelOf
from cifar_fastai.loaders.workers import LoaderError

AUG = policy.pad_crop_flip_cutout(pad=2, cutout=4, jitter=(.2, .2, .2, .1))


def loaders(data, num_workers=0, aug=AUG, seed=0, **kwargs):
    return cifar_dataloaders(data, 32, aug, seed=seed, num_workers=num_workers, device="cpu", **kwargs)


def epoch(dl):
    "Everything that the loader shows, as bytes"
    return b"".join(x.numpy().tobytes() + y.numpy().tobytes() for x, y in dl)


class Noop(Transform):
    "An item transform that does nothing but take the fast road away"
    def encodes(self, x: PILImage): return x


@pytest.fixture(scope="module")
def four_epochs(learnable):
    "Two epochs of training and validation by turns, in this process"
    dls = loaders(learnable)
    return [epoch(dl) for dl in (dls.train, dls.valid, dls.train, dls.valid)]


# the same whoever makes it

@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_any_number_of_workers_shows_the_same_pixels(learnable, four_epochs, num_workers):
    dls = loaders(learnable, num_workers)
    assert [epoch(dl) for dl in (dls.train, dls.valid, dls.train, dls.valid)] == four_epochs


def test_epochs_differ_and_so_do_seeds_and_validation_does_not(learnable, four_epochs):
    first, valid, second, valid_again = four_epochs
    assert first != second and valid == valid_again
    assert epoch(loaders(learnable, seed=1).train) not in (first, second)
    assert epoch(loaders(learnable, seed=1).valid) == valid


@pytest.mark.parametrize("num_workers", [0, 2])
def test_item_by_item_gives_the_same_pixels_and_says_that_it_is_slower(learnable, four_epochs, num_workers,
                                                                     caplog):
    dls = loaders(learnable, num_workers, item_tfms=Noop())
    assert [epoch(dl) for dl in (dls.train, dls.valid, dls.train, dls.valid)] == four_epochs
    assert "['Noop'] are applied picture by picture, several times slower" in caplog.text
    assert "slower" not in (caplog.clear(), loaders(learnable), caplog.text)[2]


def test_each_epoch_shows_every_picture_once_in_another_order(learnable):
    dls = loaders(learnable, aug=None)
    def seen(): return [p.tobytes() for x, _ in dls.train for p in (x * 1).numpy()]
    first, second = seen(), seen()
    assert sorted(first) == sorted(second) and len(set(first)) == 160 and first != second


def test_an_epoch_can_be_chosen_and_entered_in_the_middle(learnable, four_epochs):
    dls = loaders(learnable)
    dls.train.set_epoch(1)
    assert epoch(dls.train) == four_epochs[2]
    dls.train.set_epoch(1, skip=3)
    assert four_epochs[2].endswith(epoch(dls.train)) and dls.train.epoch == 2
    dls.train.set_epoch(0)
    assert epoch(dls.train) == four_epochs[0], "a skip counts once"


def test_what_else_draws_does_not_matter_and_is_not_disturbed(learnable, four_epochs):
    dls = loaders(learnable)
    torch.manual_seed(3), np.random.seed(3)
    dls.train.one_batch(), dls.valid.one_batch()
    after = torch.rand(1), np.random.rand()
    torch.manual_seed(3), np.random.seed(3)
    assert (torch.rand(1), np.random.rand()) == after
    dls.train.set_epoch(0)
    assert epoch(dls.train) == four_epochs[0]


class Sparks(A.ImageOnlyTransform):
    "Draws from numpy's global generator, as careless transforms do"
    def apply(self, img, **params): return np.random.randint(0, 256, img.shape).astype(np.uint8)


@pytest.mark.parametrize("item_tfms", [None, Noop()])
def test_even_transforms_that_draw_from_global_generators_do_not_repeat(learnable, item_tfms):
    alone, shared = (loaders(learnable, n, [Sparks(p=1)], item_tfms=item_tfms) for n in (0, 2))
    pictures = [p.tobytes() for _ in range(2) for x, _ in alone.train for p in x.numpy()]
    assert len(set(pictures)) == len(pictures) == 320
    assert [p.tobytes() for _ in range(2) for x, _ in shared.train for p in x.numpy()] == pictures


# values, layout, sizes

def test_pixels_are_normalised_exactly_and_lie_channels_last(learnable):
    dls = loaders(learnable, aug=None)
    x, y = dls.valid.one_batch()
    mean, std = (np.array(v, np.float32) for v in (learnable.mean, learnable.std))
    expected = (learnable.x_test / np.float32(255) - mean) / std
    assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
    assert np.abs(x.permute(0, 2, 3, 1).numpy() - expected).max() < 2e-6
    assert (y.numpy() == learnable.y_test).all() and y.dtype == torch.int64


def test_training_drops_the_last_part_batch_and_validation_keeps_it(learnable):
    dls = cifar_dataloaders(learnable, 50, None, num_workers=0, device="cpu", val_bs=20)
    assert [len(y) for _, y in dls.train] == [50, 50, 50] and len(dls.train) == 3
    assert [len(y) for _, y in dls.valid] == [20, 20, 8] and len(dls.valid) == 3


def test_validation_without_augmentation_needs_no_workers_and_with_it_is_the_same_each_epoch(learnable):
    dls = loaders(learnable, 2)
    epoch(dls.valid)
    assert dls.valid.pool is None
    tfm, = (t for t in dls.valid.after_item.fs if hasattr(t, "valid"))
    tfm.valid = tfm.train
    first = epoch(dls.valid)
    assert dls.valid.pool is not None and epoch(dls.valid) == first
    assert first != epoch(loaders(learnable).valid)


def test_labels_that_a_user_changes_are_not_read_off_the_store(learnable):
    block = cifar_block(learnable, AUG)
    class Shifted(LabelOf):
        def encodes(self, o) -> str: return self.store.classes[(self.store.y[o] + 1) % 4]
    block.getters[1] = Shifted(block.getters[1].store)
    dls = block.dataloaders(learnable, bs=32, num_workers=0, device="cpu")
    assert (dls.valid.one_batch()[1].numpy() == (learnable.y_test[:32] + 1) % 4).all()


def test_it_serves_any_other_datablock_too(tmp_path):
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.data.transforms import GrandparentSplitter, parent_label
    from fastai.vision.data import ImageBlock
    from made import picture_folder

    from cifar_fastai.loaders.augment import AlbumentationsTransform
    picture_folder(tmp_path, n=6)
    block = DataBlock((ImageBlock, CategoryBlock), dl_type=BatchDL, get_items=get_image_files,
                      get_y=parent_label, splitter=GrandparentSplitter("train", "test"),
                      item_tfms=AlbumentationsTransform(policy.pad_crop_flip()))
    shown = [[epoch(dls.train) for _ in range(2)] for dls in
             (block.dataloaders(tmp_path, bs=4, num_workers=n, device="cpu") for n in (0, 2))]
    assert shown[0] == shown[1] and shown[0][0] != shown[0][1]


def test_it_serves_a_table_too_and_names_the_row_that_cannot_be_read(tmp_path):
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.data.transforms import ColReader, RandomSplitter
    from fastai.vision.data import ImageBlock
    from made import picture_folder
    picture_folder(tmp_path, n=6)
    files = sorted(map(str, get_image_files(tmp_path)))
    table = pd.DataFrame({"file": files, "label": [f.split("/")[-2] for f in files]})
    block = DataBlock((ImageBlock, CategoryBlock), dl_type=BatchDL, get_x=ColReader("file"),
                      get_y=ColReader("label"), splitter=RandomSplitter(seed=0))
    made = [block.dataloaders(table, bs=4, num_workers=n, device="cpu").train for n in (0, 2)]
    assert epoch(made[0]) == epoch(made[1]) and made[0].one_batch()[0].shape[:2] == (4, 3)
    for f in files: Path(f).unlink()
    with pytest.raises(LoaderError, match="item file .* could not be made: FileNotFound") as error:
        epoch(made[0])
    assert "\n" not in str(error.value)


# workers

def test_an_epoch_that_is_left_early_does_not_spoil_the_next(learnable, four_epochs):
    dl = loaders(learnable, 2).train
    next(iter(dl))
    assert epoch(dl) == four_epochs[2]


def test_a_new_transform_or_subset_reaches_the_workers(learnable):
    dl = loaders(learnable, 2, item_tfms=Noop()).train
    plain = epoch(dl)
    with dl.dataset.set_split_idx(1): unaugmented = epoch(dl)
    dl.set_epoch(0)
    assert epoch(dl) == plain != unaugmented
    class Black(Transform):
        order = 3
        def encodes(self, x: PILImage): return PILImage.create(np.zeros((16, 16, 3), np.uint8))
    dl.after_item.add(Black())
    assert len({p.tobytes() for x, _ in dl for p in x.numpy()}) == 1


class Fails(A.ImageOnlyTransform):
    "Fails on the picture it is told to"
    def __init__(self, victim): super().__init__(p=1); self.victim = victim
    def apply(self, img, **params):
        if img.tobytes() == self.victim: raise ValueError("cannot be\nborne")
        return img


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("item_tfms", [None, Noop()])
def test_an_augmentation_that_fails_names_the_picture(learnable, num_workers, item_tfms):
    dl = loaders(learnable, num_workers, [Fails(learnable.x_train[77].tobytes())], item_tfms=item_tfms).train
    with pytest.raises(LoaderError) as error: epoch(dl)
    message = str(error.value)
    assert "training picture 77" in message and "ValueError: cannot be borne" in message
    assert "\n" not in message and error.value.exit_status == 1


def test_pictures_that_come_out_in_different_sizes_are_named(learnable):
    class Odd(Fails):
        def apply(self, img, **params): return img[:9] if img.tobytes() == self.victim else img
    with pytest.raises(LoaderError, match=r"made training picture 77 \(9, 16, 3\) beside \(16, 16, 3\)"):
        epoch(loaders(learnable, aug=[Odd(learnable.x_train[77].tobytes())]).train)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_path_that_cannot_be_read_is_named(learnable, tmp_path, num_workers):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    dls = loaders(learnable, num_workers)
    with pytest.raises(InputError, match="bad.png") as error:
        epoch_of_inputs(dls.test_dl([tmp_path / "bad.png"], num_workers=num_workers))
    assert "\n" not in str(error.value)


def epoch_of_inputs(dl): return [b[0].numpy() for b in dl]


# what fastai's own calls ask of a loader

@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("show", [True, False])
def test_one_picture_is_shown_in_many_augmentations_and_the_loader_goes_on_as_before(learnable, show,
                                                                                     num_workers):
    dls = loaders(learnable, num_workers)
    dls.show_batch(unique=True, max_n=3)
    shown = dls.train.show_batch(unique=True, max_n=8, show=show)
    if not show:
        pictures = [np.array(x).tobytes() for x, _ in shown[2]]
        assert len({str(y) for _, y in shown[2]}) == 1 and len(set(pictures)) == len(pictures) == 8
    plt.close("all")
    assert len({x.tobytes() for b, _ in loaders(learnable, aug=None).train for x in b.numpy()}) == 160
    dls.train.set_epoch(0)
    assert epoch(dls.train) == epoch(loaders(learnable).train) and "get_idxs" not in vars(dls.train)


def test_indices_that_were_given_come_back_after_one_picture_was_shown(learnable):
    dl = loaders(learnable).valid.new(get_idxs=lambda: [3, 1], n=2, bs=2)
    dl.show_batch(unique=True, show=False)
    assert dl.one_batch()[1].tolist() == learnable.y_test[[3, 1]].tolist()


def test_items_are_a_list_to_fastai_and_an_array_in_memory(learnable):
    dls = loaders(learnable)
    assert L(dls.valid.items)[[1, 2]] == [161, 162] and list(L(dls.train.items)) == list(range(160))
    assert all(isinstance(dl.dataset.items, np.ndarray) for dl in dls.loaders), "8 bytes a picture, not 36"
    paths = dls.test_dl(["a.png", "b.png"])
    assert list(paths.items) == ["a.png", "b.png"]


def test_indices_fewer_than_the_set_are_an_epoch_of_those_alone(learnable):
    dls = loaders(learnable)
    dls.train.get_idxs = lambda: list(range(40))
    seen = torch.cat([y for _, y in dls.train])
    assert seen.tolist() == learnable.y_train[:40].tolist()
