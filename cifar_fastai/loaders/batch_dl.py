"""A fastai DataLoader that makes whole batches, each a pure function of (seed, epoch, place in its order).

    dl = BatchDL(datasets.train, bs=512, shuffle=True, seed=0)   # or dl_type=BatchDL, as `cifar_block` does
    dl.set_epoch(3)                                              # what the next iteration draws from
    dl.share(rank=1, processes=4)                                # a fourth of each batch of 4 × 512
"""
from copy import copy
from itertools import islice

import numpy as np
import torch
from fastai.data.core import Datasets, TfmdDL
from fastai.data.transforms import Categorize, ToTensor
from fastai.torch_core import TensorCategory, TensorImage, apply, to_detach, to_device
from fastcore.foundation import L

from ..errors import InputError
from ..processes import gathered
from .augment import AlbumentationsTransform, augmenter, drawing_from, one_thread
from .picture_store import LabelOf, PictureOf, PictureStore
from .workers import LoaderError, Workers

__all__ = ["BatchDL"]


class BatchDL(TfmdDL):
    """A `TfmdDL` that makes each batch as a pure function of (seed, epoch, place in the epoch's order).
    Pictures of a `PictureStore` are augmented straight into one batch tensor; any other dataset or item
    transform goes picture by picture, as in fastai. Worker processes stay alive from epoch to epoch."""

    def __init__(self, dataset, bs=64, shuffle=False, num_workers=0, seed=0, timeout=120, **kwargs):
        super().__init__(dataset, bs=bs, shuffle=shuffle, num_workers=num_workers, **kwargs)
        self.seed, self.epoch, self.skip, self.pool, self.pool_of = seed, 0, 0, None, None
        self.timeout = timeout   # seconds that a batch may take in a worker
        self.rank, self.processes, self.array_of = 0, 1, None

    def new(self, dataset=None, cls=None, shuffled=None, **kwargs):    # `shuffled`: what fastai's `tta` says
        if shuffled is not None: kwargs["shuffle"] = shuffled
        return super().new(dataset, cls, **{"seed": self.seed, **kwargs})

    def set_epoch(
        self,
        epoch: int,     # what the next iteration draws from; each iteration moves on by one by itself
        skip: int = 0,  # batches to leave out at its start: a run resumed within the epoch
    ) -> None:
        "Choose the epoch that the next iteration shows"
        self.epoch, self.skip = epoch, skip

    def share(self, rank: int, processes: int) -> None:
        """Let `processes` of them read an epoch together: batches of `processes` × `bs`, each reads its part.
        Without `drop_last` all batches are of nearly equal size. Raises: InputError for too few pictures"""
        n = self._n
        if n < processes or processes > 1 and self.drop_last and n < processes * self.bs:
            raise InputError(f"{processes} processes have {n} pictures to share, in batches of {self.bs}. "
                             "Take fewer processes or smaller batches.")
        self.rank, self.processes = rank, processes

    @property
    def _n(self) -> int: return len(self.dataset) if self.n is None else self.n

    def __len__(self):
        if self.processes == 1: return super().__len__()
        whole = self.bs * self.processes
        return self._n // whole if self.drop_last else min(-(-self._n // whole), self._n // self.processes)

    def places(self, number: int) -> tuple[int, int]:
        "Where in the epoch's order this process's part of a batch begins and ends"
        whole = self.bs * self.processes
        if self.processes == 1 or self.drop_last: start, end = number * whole, (number + 1) * whole
        else: start, end = (self._n * k // len(self) for k in (number, number + 1))
        return tuple(start + (end - start) * r // self.processes for r in (self.rank, self.rank + 1))

    def to_detach(self, b, cpu=True, gather=True):
        "fastai's; the parts of a batch that processes share are put together, of whatever size"
        b = to_detach(b, cpu, gather=False)
        return apply(gathered, b) if gather and self.processes > 1 else b

    def randomize(self): pass  # nothing here draws from a generator that moves

    def get_idxs(self):
        if not self.shuffle: return np.arange(self._n)
        return np.random.default_rng([self.seed, self.epoch, 1]).permutation(self._n)

    def __iter__(self):
        self.before_iter()
        idxs, epoch, skip = self._chosen(), self.epoch, self.skip
        self.epoch, self.skip = epoch + 1, 0
        parts = [self.places(b) for b in range(skip, len(self))]
        keys = [(epoch, start, idxs[start:end]) for start, end in parts if len(idxs[start:end])]
        for batch in self._in_workers(keys) if self._worth_workers() else map(self.make_batch, keys):
            if self.device: batch = to_device(batch, self.device, non_blocking=self.pin_memory)
            yield self.after_batch(batch)
        self.after_iter()

    def _chosen(self) -> np.ndarray:
        "The indices of an epoch as an array; `show_batch(unique=True)` gives the loader an endless iterator"
        idxs = self.get_idxs()
        return np.asarray(idxs if hasattr(idxs, "__len__") else list(islice(idxs, len(self) * self.bs)))

    @property
    def items(self):
        "The dataset's, for fastai's interpretation, which takes an array for one item"
        items = self.dataset.items
        return L(items.tolist()) if isinstance(items, np.ndarray) else items

    def show_batch(self, *args, unique=False, **kwargs):
        "fastai's; `get_idxs` is afterwards as before, also where this fails or only returns (show=False)"
        before = vars(self).get("get_idxs")
        try: return super().show_batch(*args, unique=unique, **kwargs)
        finally:
            if unique: vars(self).pop("get_idxs", None)
            if unique and before is not None: self.get_idxs = before

    def make_batch(self, key):
        "The batch of `key` = (epoch, place of the first, indices), on the CPU, before the batch transforms"
        epoch, start, idxs = key
        store, aug = self.direct()
        if store is not None and aug is None:
            return self._labelled(store, store.take(self._items(idxs)), idxs)
        tfms = [t for t in self.after_item.fs if isinstance(t, AlbumentationsTransform)]
        key = self.seed, epoch if self._split_idx in (0, None) else 0
        with drawing_from(tfms, key, start, self._split_idx, grown=not self.shuffle) as place:
            if store is None: return self.do_batch(self._one_by_one(idxs, place))
            with one_thread(): x = _augmented(store, aug, self._items(idxs), place)
            return self._labelled(store, x, idxs)

    def _items(self, idxs):
        "The items at `idxs`. Their array is kept: to make it of a long list at each batch would take longer"
        items = self.dataset.items
        if self.array_of is None or self.array_of[0] is not items: self.array_of = items, np.asarray(items)
        return self.array_of[1][idxs]

    def _labelled(self, store, x, idxs):
        batch = (TensorImage(torch.from_numpy(x).permute(0, 3, 1, 2)),)
        labels = (torch.from_numpy(store.y[self._items(idxs)]) for _ in self.dataset.tls[1:])
        return *batch, *map(TensorCategory, labels)

    def _one_by_one(self, idxs, place) -> list:
        "The items `idxs` through their transforms; a fastai transform may skip some"
        items = []
        for i in idxs.tolist():
            place(int(self.dataset.items[i]) if _indices(getattr(self.dataset, "items", [])) else i)
            try: items.append(self.do_item(i))
            except InputError: raise
            except Exception as e: raise LoaderError(f"{self._name(i)} could not be made: {_short(e)}") from e
        return [item for item in items if item is not None]

    def _name(self, i: int) -> str:
        items = getattr(self.dataset, "items", None)
        item, first = i if items is None else getattr(items, "iloc", items)[i], self._first_tfms()
        known = isinstance(item, (int, np.integer)) and first and isinstance(first[0], PictureOf)
        said = " ".join(str(item).split()) if hasattr(items, "iloc") else str(item)
        return first[0].store.name(item) if known else f"item {said[:200]}"

    def _first_tfms(self) -> list:
        tls = self.dataset.tls if isinstance(self.dataset, Datasets) else ()
        return [f for f in tls[0].tfms.fs if f.name != "noop"] if tls else []

    def direct(self) -> tuple[PictureStore | None, object]:
        """The store and the augmentation if this loader's items are pictures of a `PictureStore` that go
        through nothing but Albumentations, else (None, None)"""
        first = self._first_tfms()
        ours = [t for t in self.after_item.fs if not isinstance(t, ToTensor) and t.name != "noop"]
        if [type(t) for t in first] != [PictureOf] or not _indices(self.dataset.items): return None, None
        if not all(_plain_label(tl.tfms.fs, first[0].store) for tl in self.dataset.tls[1:]): return None, None
        if self.before_batch.fs or [type(t) for t in ours] not in ([], [AlbumentationsTransform]):
            return None, None
        return first[0].store, ours[0].of(self._split_idx) if ours else None

    @property
    def _split_idx(self): return getattr(self.dataset, "split_idx", None)

    def _worth_workers(self):
        "Whether batches are made in worker processes: not if making one is no more than copying pictures"
        store, aug = self.direct()
        return self.fake_l.num_workers > 0 and (store is None or aug is not None)

    def _in_workers(self, keys):
        pool_of = (self.fake_l.num_workers, self.pin_memory, self._split_idx, self.timeout, self.dataset,
                   *self.after_item.fs, *self.before_batch.fs)
        known = self.pool_of or ()
        if len(pool_of) != len(known) or any(a is not b for a, b in zip(pool_of, known)):
            self.close()
            light = copy(self)  # what a worker needs, without the device's transforms
            light.fake_l = light.after_batch = None
            self.pool_of = pool_of
            self.pool = Workers(light.make_batch, self.fake_l.num_workers, self.pin_memory, self.timeout)
        return self.pool.batches(keys, self._where)

    def _where(self, key) -> str:
        epoch, start, idxs = key
        number = start // (self.bs * self.processes)
        return f"batch {number} of epoch {epoch} ({self._name(idxs[0])} … {self._name(idxs[-1])})"

    def show_results(self, *args, **kwargs):
        "fastai's, which asks for this module to tell pictures from other things"
        import fastai.vision.learner  # noqa: F401  (takes half a second)
        return super().show_results(*args, **kwargs)

    def close(self) -> None:
        "End the worker processes; the next iteration starts new ones"
        if self.pool is not None: self.pool.close()
        self.pool = self.pool_of = None

    def __getstate__(self): return self.__dict__ | {"pool": None, "pool_of": None, "array_of": None}


def _plain_label(tfms, store: PictureStore) -> bool:
    "Whether `tfms` make of an index the label that the store has for it"
    if [type(t) for t in tfms] != [LabelOf, Categorize]: return False
    return tfms[0].store is store and tuple(tfms[1].vocab) == store.classes


def _indices(items) -> bool:
    if isinstance(items, np.ndarray): return items.dtype.kind == "i"
    if hasattr(items, "iloc"): return False                   # a table, whose [0] is a column
    return len(items) > 0 and isinstance(items[0], (int, np.integer))


def _augmented(store: PictureStore, aug, items: np.ndarray, place) -> np.ndarray:
    "Pictures `items`, each through `aug`, as one (N,h,w,3) array"
    out, run = None, augmenter(aug)
    for k, i in enumerate(items):
        place(int(i))
        try: x = run(store[i])
        except Exception as e:
            raise LoaderError(f"augmentation failed on {store.name(i)}: {_short(e)}") from e
        if out is None: out = np.empty((len(items), *x.shape), x.dtype)
        if x.shape != out.shape[1:]:
            raise LoaderError(f"augmentation made {store.name(i)} {x.shape} beside {out.shape[1:]}. "
                              "End it with a crop or a resize to one size.")
        out[k] = x
    return out


def _short(e: Exception) -> str: return f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
