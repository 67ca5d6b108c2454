"""P1, P2, P5: pictures a second on one core, and the wait between two epochs.

Against stock fastai on files and a plain torch Dataset with Albumentations, as tutorials write them.
"""
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import GrandparentSplitter, Normalize, get_image_files, parent_label
from fastai.vision.augment import RandTransform
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock

from cifar_fastai import cifar_dataloaders, policy

from .harness import Row, alternate, ratio, threads
from .pictures import coloured, write_folder

N, BS = 2048, 256


class TutorialTransform(RandTransform):
    "Albumentations in fastai as fastai's own documentation writes it"
    split_idx, order = 0, 2
    def __init__(self, aug):
        super().__init__()
        self.aug = aug
    def encodes(self, img: PILImage): return PILImage.create(self.aug(image=np.array(img))["image"])


class PlainDataset(torch.utils.data.Dataset):
    "What most tutorials write: an array, Albumentations, Normalize and ToTensorV2 for each picture"
    def __init__(self, x, y, aug): self.x, self.y, self.aug = x, y, aug
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.aug(image=self.x[i])["image"], int(self.y[i])


def crop_flip():
    return [A.Pad(4, border_mode=cv2.BORDER_REFLECT_101), A.RandomCrop(32, 32), A.HorizontalFlip(p=.5)]


def cutout(): return A.CoarseDropout((1, 1), hole_height_range=(8, 8), hole_width_range=(8, 8), p=1)


def heavier():
    "A list whose time lies in Albumentations itself: colours too"
    return [*crop_flip(), A.RandomBrightnessContrast(p=.5), cutout()]


def stock(folder: Path, data, aug, workers: int = 0):
    "Stock fastai on the files"
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label,
                      splitter=GrandparentSplitter("train", "test"),
                      item_tfms=TutorialTransform(A.Compose(aug)),
                      batch_tfms=Normalize.from_stats(data.mean, data.std, cuda=False))
    return block.dataloaders(folder, bs=BS, num_workers=workers, device=torch.device("cpu"))


def plain(data, aug):
    aug = A.Compose([*aug, A.Normalize(data.mean, data.std), ToTensorV2()])
    ds = PlainDataset(data.x_train, data.y_train, aug)
    return torch.utils.data.DataLoader(ds, BS, shuffle=True, drop_last=True)


def ours(data, aug, workers: int = 0):
    return cifar_dataloaders(data, BS, aug, num_workers=workers, device="cpu")


def epoch(dl):
    for _ in dl: pass


def check_equal(folder, data):
    "Without augmentation the three give the same numbers for the same pictures"
    loaders = ours(data, None).train, stock(folder, data, []).train, plain(data, [])
    a, b, c = ({_key(x): y for xb, yb in dl for x, y in zip(xb, yb.tolist())} for dl in loaders)
    common = a.keys() & b.keys() & c.keys()
    same = len(common) > .8 * len(a) and all(a[k] == b[k] == c[k] for k in common)
    assert same, "the loaders do not show the same pictures"


def _key(x) -> tuple:
    some = torch.as_tensor(x).as_subclass(torch.Tensor)[:, ::8, ::8]
    return tuple((some * 100).round().int().flatten().tolist())


def gap(dl, epochs: int = 3) -> float:
    "Seconds between the last batch of an epoch and the first one of the next, median"
    waits = []
    for k in range(epochs):
        start = time.perf_counter() if k else None
        for b, _ in enumerate(dl):
            if b == 0 and start: waits.append(time.perf_counter() - start)
    return median(waits)


def run(rounds: int = 5) -> list[Row]:
    data = coloured(N, BS)
    with tempfile.TemporaryDirectory() as tmp, threads(1):
        folder = write_folder(data, Path(tmp))
        check_equal(folder, data)
        return [*_policy(folder, data, rounds), *_lists(folder, data, rounds), _between(folder, data, rounds)]


def _policy(folder, data, rounds: int) -> list[Row]:
    pol, names = [*crop_flip(), cutout()], ("ours", "fastai", "torch")
    dls = ours(data, policy.pad_crop_flip_cutout()).train, stock(folder, data, pol).train, plain(data, pol)
    times = alternate({name: partial(epoch, dl) for name, dl in zip(names, dls)}, rounds)
    speed = "ours {:,.0f}, fastai {:,.0f}, plain torch {:,.0f} pictures/s"
    note = speed.format(*(N / median(t) for t in times.values()))
    fastai, torch_ = (ratio(times, name, "ours") for name in names[1:])
    return [Row("P1", "loader, one core", "stock fastai on files", 15, fastai, note=note),
            Row("P1", "loader, one core", "torch Dataset, Albumentations", 3.5, torch_)]


def _lists(folder, data, rounds: int) -> list[Row]:
    "Albumentations' own transforms, as a user gives them; beside it how fast they are without any loader"
    rows = []
    lists = {"Pad, RandomCrop, HorizontalFlip, CoarseDropout": lambda: [*crop_flip(), cutout()],
             "the same and RandomBrightnessContrast": heavier}
    for work, tfms in lists.items():
        a, b = ours(data, tfms()).train, stock(folder, data, tfms()).train
        c = partial(bare, tfms(), data.x_train)
        times = alternate({"ours": partial(epoch, a), "fastai": partial(epoch, b), "bare": c}, rounds)
        found, most = (ratio(times, "fastai", name) for name in ("ours", "bare"))
        note = f"each called by Albumentations itself, without a loader: {most:.2f} × stock fastai"
        rows.append(Row("P2", f"loader, {work}", "stock fastai on files", 6, found, note=note))
    return rows


def bare(tfms, pictures):
    "The transforms called one by one by Albumentations itself, without a loader"
    for x in pictures:
        for t in tfms: x = t(image=x)["image"]


def _between(folder, data, rounds: int) -> Row:
    pol = [*crop_flip(), cutout()]
    a, b = ours(data, policy.pad_crop_flip_cutout(), 2).train, stock(folder, data, pol, 2).train
    times = alternate({"ours": partial(gap, a), "fastai": partial(gap, b)}, rounds)
    a.close()
    note = "ours {:.1f} ms, fastai {:.1f} ms".format(*(1e3 * median(t) for t in times.values()))
    return Row("P5", "wait between epochs, 2 workers", "stock fastai", 1 / 5,
               1 / ratio(times, "fastai", "ours"), at_most=True, note=note)
