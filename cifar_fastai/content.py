"""Pictures by their content: keys, choices that no order of files changes, statistics.

    chosen = stratified(content_keys(x), y, n=100)      # indices with the class shares of `y`
    train, test = split_off(x, y, share=.2)             # doubles are on one side"""
import hashlib

import numpy as np

__all__ = ["content_keys", "shared_pictures", "split_off", "statistics", "stratified", "without_doubles"]


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
