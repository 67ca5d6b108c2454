"""A source → checked pictures, labels and class names, in memory as uint8. No fastai.

    data = load_data("digits")               # "cifar10", "cifar100", "digits", an archive, a folder
    data.x_train.shape, data.classes         # (1437, 32, 32, 3), ('0', '1', …)
    small = data.limit(500, seed=0)          # stratified, the same pictures whatever the order of the files
    train, held = data.holdout(200, seed=0)  # indices into x_train"""
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import search
from .archives import official_in, read_official
from .errors import InputError, unknown
from .folders import LAYOUT, digest, read_folder
from .pictures import read_picture

__all__ = ["ImageData", "load_data", "read_picture", "statistics", "content_keys", "shared_pictures"]

log = logging.getLogger("cifar_fastai")
NAMES = ("cifar10", "cifar100", "digits")


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    "Pictures and labels of a training and a test set, checked. Compare two by `fingerprint`"
    x_train: np.ndarray      # (N,S,S,3) uint8, perhaps memory-mapped and read-only
    y_train: np.ndarray      # (N,) int64, indices into `classes`
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple           # names, by label
    source: str              # what a person calls it
    fingerprint: str         # sha256 over pictures, labels, class names and size
    mean: tuple              # of the training pictures, R G B, each in 0…1
    std: tuple               # population standard deviation, as above
    files_train: Sequence | None = None   # names, for messages
    files_test: Sequence | None = None

    def __post_init__(self):
        top = len(self.classes) - 1
        for what, x, y in (("training", self.x_train, self.y_train), ("test", self.x_test, self.y_test)):
            if x.dtype != np.uint8 or x.shape != (len(x), self.size, self.size, 3):
                raise InputError(f"{what} pictures are {x.dtype} {x.shape}, expected uint8 (N,S,S,3).")
            if len(x) != len(y) or not len(x):
                raise InputError(f"{len(x)} {what} pictures have {len(y)} labels. Give each its own.")
            if y.min() < 0 or y.max() > top:
                raise InputError(f"{what} labels go from {y.min()} to {y.max()}, expected 0 to {top}.")
        for name in ("x_train", "y_train", "x_test", "y_test"):   # read-only, as from a memory-mapped cache
            view = getattr(self, name).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @property
    def size(self) -> int: return self.x_train.shape[1]

    def __repr__(self):
        return (f"ImageData({self.source}: {len(self.x_train):,} training and {len(self.x_test):,} test "
                f"pictures of {self.size}×{self.size}, {len(self.classes)} classes)")

    def limit(
        self,
        n: int,          # at most so many training pictures
        seed: int = 0,   # which ones
    ) -> "ImageData":
        "The same data with `n` training pictures, stratified and chosen by content; the test set as it is"
        if n >= len(self.x_train): return self
        if n < len(self.classes):
            raise InputError(f"limit {n} is below the {len(self.classes)} classes. Give one a class or more.")
        idx, _ = _stratified(self.x_train, self.y_train, n, seed)
        x, y = np.ascontiguousarray(self.x_train[idx]), self.y_train[idx]
        about = _describe(x, y, self.x_test, self.y_test, self.classes)
        files = self.files_train and [self.files_train[i] for i in idx]
        return replace(self, x_train=x, y_train=y, files_train=files, **_fields(about))

    def holdout(
        self,
        n: int = 5000,   # so many training pictures are held out, but never more than 20 % of them
        seed: int = 0,   # which ones
    ) -> tuple:          # (train_idx, holdout_idx) into x_train, int64
        "A stratified split of the training pictures by seed and content. One that has a twin is not held out"
        most = len(self.x_train) // 5
        n = min(n, most)
        if n < 1: raise InputError(f"holdout of {n} pictures, expected 1 to {most}. Hold out others.")
        held, keys = _stratified(self.x_train, self.y_train, n, seed)
        rest = np.ones(len(keys), bool)
        rest[held] = False
        twin = np.isin(keys[held], keys[rest])
        rest[held[twin]] = True
        if twin.all(): raise InputError("every picture to hold out is there twice. Remove the doubles.")
        return np.flatnonzero(rest), held[~twin]


# ---------------------------------------------------------------- choosing and describing pictures

def content_keys(
    x: np.ndarray,    # (N,S,S,3) uint8
    seed: int = 0,    # another seed, another order
) -> np.ndarray:      # (N,) uint64
    "A keyed 64-bit hash (BLAKE2b) of each picture: equal pictures have equal keys, whatever their place"
    key = int(seed).to_bytes(8, "little", signed=True)
    hashes = (hashlib.blake2b(p, digest_size=8, key=key).digest() for p in np.ascontiguousarray(x))
    return np.fromiter((int.from_bytes(h, "little") for h in hashes), np.uint64, len(x))


def _stratified(x, y, n, seed):
    "(`n` indices with the class shares of `y`, in order of content; the keys of all)"
    keys, counts = content_keys(x, seed), np.bincount(y)
    share = n * counts / len(y)
    take = np.floor(share).astype(int)
    if n >= (counts > 0).sum(): take = np.where(counts > 0, np.maximum(take, 1), 0)
    for c in np.argsort(take - share, kind="stable"):        # largest remainder first
        if take.sum() < n: take[c] += 1
    while take.sum() > n: take[np.argmax(take)] -= 1
    order = np.argsort(keys, kind="stable")
    rank = np.empty(len(y), int)
    for c in range(len(counts)): rank[order[y[order] == c]] = np.arange(counts[c])
    return order[rank[order] < take[y[order]]], keys


def statistics(
    x: np.ndarray,    # (N,S,S,3) uint8
) -> tuple:           # (mean, std): each three floats in 0…1
    "Mean and population standard deviation of each channel over all pixels, from exact integer sums"
    total, squares = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for i in range(0, len(x), 256):
        part = x[i:i + 256].reshape(len(x[i:i + 256]), -1)
        total += part.sum(0, dtype=np.uint32).reshape(-1, 3).sum(0, dtype=np.int64)
        part = np.square(part, dtype=np.uint32).sum(0, dtype=np.uint32)   # 256 × 255² fit
        squares += part.reshape(-1, 3).sum(0, dtype=np.int64)
    n = x[..., 0].size
    mean = tuple(int(t) / (255 * n) for t in total)
    std = tuple(((n * int(q) - int(t) ** 2) / n ** 2) ** .5 / 255 for t, q in zip(total, squares))
    return mean, std


def shared_pictures(
    x_train: np.ndarray,   # (N,S,S,3) uint8
    x_test: np.ndarray,    # (M,S,S,3)
) -> np.ndarray:           # indices into x_test
    "Which test pictures are byte for byte among the training pictures"
    return np.flatnonzero(np.isin(content_keys(x_test), content_keys(x_train)))


def _describe(x_train, y_train, x_test, y_test, classes):
    parts = [classes, x_train.shape, x_test.shape, *map(digest, (x_train, y_train, x_test, y_test))]
    mean, std = statistics(x_train)
    return {"fingerprint": hashlib.sha256(json.dumps(parts).encode()).hexdigest(), "mean": mean, "std": std,
            "shared": len(shared_pictures(x_train, x_test))}


def _fields(about):
    return {"fingerprint": about["fingerprint"], "mean": tuple(about["mean"]), "std": tuple(about["std"])}


# ---------------------------------------------------------------- sources

def load_data(
    source: str | Path = "cifar10",   # "cifar10", "cifar100", "digits", or the path of an archive or a folder
    *,
    size: int = 32,                   # side of the pictures, 8 to 256
    unverified: bool = False,         # take the files at a path or in CIFAR10_DIR whatever their MD5
    download: bool = True,            # fetch CIFAR where it is not found
) -> ImageData:
    "Checked pictures from `source`. Raises: InputError, in one line, where that cannot be"
    if type(size) is not int or not 8 <= size <= 256:
        raise InputError(f"picture size {size!r} is not a whole number from 8 to 256.")
    try:
        if source == "digits": return _digits(size)
        if source in ("cifar10", "cifar100"): return _cifar(source, size, unverified, download)
        return _from_path(Path(os.path.expanduser(source)), size, unverified)
    except OSError as e: raise InputError(f"cannot read data {source} ({e}). Check path and rights.") from e


def _build(arrays, classes, source, files=(None, None), about=None):
    about = about or _describe(*arrays, classes)
    data = ImageData(*arrays, classes, source, **_fields(about), files_train=files[0], files_test=files[1])
    log.debug("%s", data)
    if about["shared"]:
        log.warning("%s of %s test pictures of %s are byte-identical to training pictures",
                    f"{about['shared']:,}", f"{len(data.x_test):,}", source)
    return data


def _digits(size):
    "scikit-learn's digits: 8×8 grey 0…16 → RGB 0…255, enlarged by PIL's bicubic filter; 80/20 by seed 0"
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    grey, y = load_digits(return_X_y=True)
    small = (Image.fromarray((p.reshape(8, 8) * (255 / 16)).astype(np.float32)) for p in grey)
    big = np.stack([np.asarray(p.resize((size, size), Image.Resampling.BICUBIC)) for p in small])
    x = np.repeat(np.rint(big).clip(0, 255).astype(np.uint8)[..., None], 3, axis=3)
    train, test = train_test_split(np.arange(len(y)), test_size=.2, stratify=y, random_state=0)
    y = y.astype(np.int64)
    return _build((x[train], y[train], x[test], y[test]), tuple("0123456789"), "digits")


def _from_path(path, size, unverified, name=""):
    "What lies at `path`; with `name`, only that data set will do"
    if not path.exists():
        if len(path.parts) == 1 and not path.suffix: raise unknown("data source or path", str(path), NAMES)
        raise InputError(f"data {path} is not there. Give a folder, an archive or one of {', '.join(NAMES)}.")
    if path.is_dir() and any((path / s).is_dir() for s in ("train", "test")):
        f = read_folder(path, size, _describe)
        if name and len(f.classes) != int(name.removeprefix("cifar")):
            raise InputError(f"{path} has {len(f.classes)} classes, which is not {name}. Check the path.")
        return _build(f[:4], f.classes, name or str(path), (f.files_train, f.files_test), f.about)
    if path.is_dir():
        found = official_in(path, name)
        if not found:
            some = ", ".join(sorted(p for p in os.listdir(path) if p[0] != ".")[:5]) or "nothing"
            raise InputError(f"data folder {path} has no train/ and test/ and no {name or 'CIFAR'} files "
                             f"(found: {some}). {LAYOUT}")
        path = found[0]
    got = read_official(path, unverified)
    if name not in ("", got.kind.name):
        raise InputError(f"{path} holds {got.kind.name}, not {name}. Check the path.")
    x_train, x_test = (_resized(x, size) for x in (got.x_train, got.x_test))
    title = f"{path.name} (unverified)" if unverified else got.kind.name
    return _build((x_train, got.y_train, x_test, got.y_test), got.classes, title)


def _resized(x, size): return x if x.shape[1] == size else np.stack([read_picture(p, size) for p in x])


def _cifar(name, size, unverified, download):
    "CIFAR from where its variable says, else from where it lies, else fetched; `search` has the order"
    variable = f"{name.upper()}_DIR"
    if os.environ.get(variable):
        path = Path(os.path.expanduser(os.environ[variable]))
        if not path.exists(): raise InputError(f"{variable}={path} is not there. Correct or unset it.")
        return _from_path(path, size, unverified, name)
    for path in search.already_here(name):
        try: return _from_path(path, size, False, name)
        except InputError as e: log.warning("passed over: %s", e)
    try:
        if not download: raise InputError("download is off")
        return _from_path(search.fetch(name), size, False, name)
    except InputError as e:
        tried = ", ".join(map(str, search.places()))
        raise InputError(f"{name} was not found in {tried}; {variable} is not set; {e}. Give --data a path, "
                         f"set {variable}, or use --data digits, which needs no download.") from e
