"""`ImageData`: the checked pictures and labels of a data set; subsets, holdout, mean and std."""
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from ..files import digest

__all__ = ["ImageData", "content_keys", "describe_arrays", "described_fields", "shared_pictures", "split_off",
           "statistics", "stratified", "without_doubles"]


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
    std: tuple               # population standard deviation, as above; 1 for a channel that never changes
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
        object.__setattr__(self, "std", tuple(s or 1.0 for s in self.std))   # 0/0 would be NaN: this gives 0
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
        idx = stratified(content_keys(self.x_train, seed), self.y_train, n)
        x, y = np.ascontiguousarray(self.x_train[idx]), self.y_train[idx]
        about = describe_arrays(x, y, self.x_test, self.y_test, self.classes)
        files = self.files_train and [self.files_train[i] for i in idx]
        return replace(self, x_train=x, y_train=y, files_train=files, **described_fields(about))

    def holdout(
        self,
        n: int = 5000,   # so many training pictures are held out, but never more than 20 % of them
        seed: int = 0,   # which ones
    ) -> tuple:          # (train_idx, holdout_idx) into x_train, int64
        "A stratified split of the training pictures by seed and content. None has a twin that trains"
        most = len(self.x_train) // 5
        several = np.flatnonzero(np.bincount(self.y_train)[self.y_train] > 1)     # an only picture trains
        n = min(n, most, len(several) // 2)
        if n < 1: raise InputError(f"holdout of {n} pictures, expected 1 to {most}. Hold out others.")
        keys = content_keys(self.x_train, seed)
        rest, held = without_doubles(several[stratified(keys[several], self.y_train[several], n)], keys)
        if not len(held): raise InputError("every picture to hold out is there twice. Remove the doubles.")
        return rest, held


def describe_arrays(x_train, y_train, x_test, y_test, classes) -> dict:
    "fingerprint, mean, std, and how many test pictures are among the training pictures (shared)"
    parts = [classes, x_train.shape, x_test.shape, *map(digest, (x_train, y_train, x_test, y_test))]
    mean, std = statistics(x_train)
    return {"fingerprint": hashlib.sha256(json.dumps(parts).encode()).hexdigest(), "mean": mean, "std": std,
            "shared": len(shared_pictures(x_train, x_test))}


def described_fields(about: dict) -> dict:
    "The fields of an `ImageData` in what `describe_arrays` gives, also after JSON"
    return {"fingerprint": about["fingerprint"], "mean": tuple(about["mean"]), "std": tuple(about["std"])}


def content_keys(
    x: np.ndarray,    # (N,S,S,3) uint8
    seed: int = 0,    # another seed, another order
) -> np.ndarray:      # (N,) uint64
    "A keyed 64-bit hash (BLAKE2b) of each picture: equal pictures have equal keys, whatever their place"
    key = int(seed).to_bytes(8, "little", signed=True)
    hashes = (hashlib.blake2b(p, digest_size=8, key=key).digest() for p in np.ascontiguousarray(x))
    return np.fromiter((int.from_bytes(h, "little") for h in hashes), np.uint64, len(x))


def stratified(
    keys: np.ndarray,   # (N,) of `content_keys`
    y: np.ndarray,      # (N,) labels
    n: int,             # so many are chosen
) -> np.ndarray:        # indices
    "`n` pictures with the class shares of `y`, in order of content"
    counts = np.bincount(y)
    share = n * counts / len(y)
    take = np.floor(share).astype(int)
    if n >= (counts > 0).sum(): take = np.where(counts > 0, np.maximum(take, 1), 0)
    for c in np.argsort(take - share, kind="stable"):        # largest remainder first
        if take.sum() < n: take[c] += 1
    while take.sum() > n: take[np.argmax(take)] -= 1
    order = np.argsort(keys, kind="stable")
    rank = np.empty(len(y), int)
    for c in range(len(counts)): rank[order[y[order] == c]] = np.arange(counts[c])
    return order[rank[order] < take[y[order]]]


def without_doubles(
    chosen: np.ndarray, # indices that are to be set apart
    keys: np.ndarray,   # (N,) of `content_keys`
) -> tuple:             # (the rest, those set apart), indices
    "`chosen` without those that have a twin among the rest: no picture is on both sides"
    rest = np.ones(len(keys), bool)
    rest[chosen] = False
    twin = np.isin(keys[chosen], keys[rest])
    rest[chosen[twin]] = True
    return np.flatnonzero(rest), chosen[~twin]


def split_off(
    x: np.ndarray,      # (N,S,S,3) uint8
    y: np.ndarray,      # (N,) labels
    share: float,       # of the pictures that test, of each class
    seed: int = 0,      # which ones
) -> tuple:             # (training, test) indices, in order
    "A stratified split by content and seed. Doubles are on one side; a class of one picture trains"
    keys, counts = content_keys(x, seed), np.bincount(y)
    several = np.flatnonzero(counts[y] > 1)
    n = max(round(share * len(several)), np.count_nonzero(counts > 1))       # one of each class at least
    chosen = several[stratified(keys[several], y[several], n)]
    train = np.setdiff1d(np.arange(len(y)), chosen)
    chosen = chosen[np.isin(y[chosen], y[train])]
    train, test = without_doubles(chosen, keys)
    return train, np.sort(test)


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
