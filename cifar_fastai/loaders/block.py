"""The DataBlock for small pictures, and its DataLoaders.

    dls = cifar_dataloaders("cifar10", bs=512)
    dls.show_batch(); xb, yb = dls.one_batch()
    dls.test_dl(["cat.png", array, pil_image])

An epoch is a pure function of (seed, epoch): shuffling draws from (seed, epoch), augmentation from (seed,
epoch, place in its order), whatever the number of workers and whatever ran before.
"""
import logging
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fastai.data.block import CategoryBlock, DataBlock, TransformBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import IntToFloatTensor, Normalize, ToTensor
from fastai.torch_core import TensorImage, default_device
from fastcore.basics import listify, num_cpus

from ..data import ImageData, load_data
from ..errors import InputError, UnknownName
from ..processes import tried_device
from .augment import AlbumentationsTransform
from .batch_dl import BatchDL
from .picture_store import LabelOf, PictureOf, PictureStore

__all__ = ["NormalizePictures", "cifar_block", "cifar_dataloaders", "subsets", "suggest_workers",
           "usable_device"]

log = logging.getLogger("cifar_fastai")


class NormalizePictures(Normalize):
    """uint8 (or 0…1 float) pictures to normalised float32 in channels_last, in one pass on the device;
    `decodes` goes back to 0…1"""
    order = 99

    def encodes(self, x: TensorImage):
        scale = 255 if x.dtype == torch.uint8 else 1
        mean, std = self.mean.as_subclass(torch.Tensor), self.std.as_subclass(torch.Tensor)
        x = x.as_subclass(torch.Tensor).to(torch.float32, memory_format=torch.channels_last, copy=True)
        return TensorImage(x.sub_(mean * scale).div_(std * scale))

    def decodes(self, x: TensorImage):
        x = x.as_subclass(torch.Tensor).cpu()           # fastai brings it there; mean and std may be on a GPU
        return TensorImage((x * self.std.cpu() + self.mean.cpu()).clamp(0, 1))


def subsets(
    data: ImageData,
    valid: str = "test",  # "test": all training pictures train; "holdout": see `ImageData.holdout`
    seed: int = 0,        # of the holdout split
) -> tuple[np.ndarray, ...]:  # indices into the store: training, validation and, with a holdout, test
    "Which pictures train, which validate, and which are left for the end"
    n, test = len(data.x_train), np.arange(len(data.x_train), len(data.x_train) + len(data.x_test))
    if valid == "test": return np.arange(n), test
    if valid == "holdout": return (*data.holdout(seed=seed), test)
    raise UnknownName("validation set", valid, ["test", "holdout"])


def cifar_block(
    data: ImageData | str | Path,  # pictures, or a source for `load_data`
    aug="pad_crop_flip_cutout",    # for training: policy or its name, A.Compose, list of transforms, None
    valid: str = "test",           # "test" or "holdout" (then the test set is `dls[2]`)
    seed: int = 0,
    item_tfms=None,                # further fastai item transforms: pictures are then made one by one, slower
    batch_tfms=None,               # further fastai batch transforms: they meet pictures of 0…1, as in fastai
) -> DataBlock:                    # `block.dataloaders(data, bs=…)`
    "The DataBlock behind `cifar_dataloaders`, for those who want to build on it"
    data = data if isinstance(data, ImageData) else load_data(data)
    store, size = PictureStore(data), data.x_train.shape[1]
    pictures = TransformBlock(type_tfms=PictureOf(store), item_tfms=ToTensor)
    augment = AlbumentationsTransform(aug, size=size, mean=data.mean)
    if any(isinstance(t, AlbumentationsTransform) for t in listify(item_tfms)):
        raise InputError("item_tfms has an AlbumentationsTransform, which would take the place of aug=: a "
                         "DataBlock keeps one transform of a kind. Give its transforms as aug=.")
    return DataBlock(
        blocks=(pictures, CategoryBlock(vocab=list(data.classes), sort=False)), dl_type=BatchDL,
        get_items=partial(_items, len(store)), splitter=partial(_splits, subsets(data, valid, seed)),
        get_y=LabelOf(store),
        item_tfms=[augment, *listify(item_tfms)],
        batch_tfms=[*_as_float(listify(batch_tfms)),
                    NormalizePictures.from_stats(data.mean, data.std, cuda=False)])


def cifar_dataloaders(
    source: ImageData | str | Path = "cifar10",  # or "cifar100", "digits", a folder, an archive, pictures
    bs: int = 512,                 # pictures a batch
    aug="pad_crop_flip_cutout",    # for training: policy or its name, A.Compose, list of transforms, None
    valid: str = "test",           # "test" (watched, never used to choose) or "holdout"
    seed: int = 0,                 # of shuffling, augmentation, limit and holdout
    num_workers: int | None = None,  # processes that augment; None: chosen by device and cores
    limit: int | None = None,      # train on this many pictures only (stratified)
    size: int = 32,                # side of the pictures, pixels
    unverified: bool = False,      # read archives whose MD5 is not the official one
    device=None,                   # None: the best there is
    item_tfms=None,                # further fastai item transforms (slower)
    batch_tfms=None,               # further fastai batch transforms
    val_bs: int | None = None,     # pictures a batch in validation; None: twice `bs`
    path: str | Path = ".",        # where a Learner on these dls writes
    split: float | None = None,    # share of a folder without a test set that tests; None: 0.2
) -> DataLoaders:                  # `dls.data` is the ImageData
    """fastai DataLoaders for small pictures, augmented by Albumentations straight into whole batches.
    Raises: InputError for a source, policy or value that is not known or cannot be read."""
    data = source
    if not isinstance(data, ImageData):
        data = load_data(source, size=size, unverified=unverified, split=split)
    elif split is not None: raise InputError("split= is for a path: this data is split. Leave it out.")
    if limit is not None: data = data.limit(limit, seed)
    device = usable_device(device)
    workers = suggest_workers(device) if num_workers is None else num_workers
    for name, value, least in (("bs", bs, 1), ("num_workers", workers, 0), ("seed", seed, 0)):
        if value < least: raise InputError(f"{name}={value}. Give {least} or more.")
    block = cifar_block(data, aug, valid, seed, item_tfms, batch_tfms)
    n_train = len(block.splitter(None)[0])
    dls = block.dataloaders(data, path=path, bs=min(bs, n_train), val_bs=val_bs or 2 * bs, seed=seed,
                            num_workers=workers, device=device, pin_memory=device.type == "cuda")
    dls.data, dls.valid_name = data, valid
    if dls.train.direct()[0] is None:
        log.warning("loader: item transforms %s are applied picture by picture, several times slower than "
                    "Albumentations transforms in aug=", [type(t).__name__ for t in listify(item_tfms)])
    return dls


def usable_device(
    device: str | torch.device | None,  # "cpu", "cuda" …; None: the best there is
) -> torch.device:
    "`device`, tried. Raises: InputError where it cannot be used here"
    return tried_device(default_device() if device is None else device)


def suggest_workers(device: torch.device) -> int:
    "Worker processes worth starting: none where the CPU itself trains, up to 8 beside a GPU"
    return 0 if device.type == "cpu" else max(1, min(8, num_cpus() - 1))


def _items(n: int, _) -> np.ndarray:
    "Every index of the store, whatever the source: it was read when the block was made"
    return np.arange(n)


def _splits(parts: tuple[np.ndarray, ...], _) -> list[list[int]]: return [part.tolist() for part in parts]


def _as_float(tfms: list) -> list:
    "Batch transforms that a user gave, after pictures were made 0…1: fastai's own do not take bytes"
    if any(isinstance(t, Normalize) for t in tfms):
        raise InputError("batch_tfms has a Normalize, but these pictures are normalised anyway, in the end, "
                         "by their own mean and standard deviation. Leave it out.")
    given = any(isinstance(t, IntToFloatTensor) for t in tfms)
    return tfms if given or not tfms else [IntToFloatTensor(), *tfms]
