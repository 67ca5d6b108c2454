"""A fastai DataLoader that makes whole batches, each a pure function of (seed, epoch, batch number).

    dl = BatchDL(datasets.train, bs=512, shuffle=True, seed=0)   # or dl_type=BatchDL, as `cifar_block` does
    dl.set_epoch(3)                                              # what the next iteration draws from
"""
import random
from contextlib import contextmanager
from copy import copy
from multiprocessing.context import get_spawning_popen
from pathlib import Path

import numpy as np
import torch
from fastai.data.core import Datasets, TfmdDL
from fastai.data.transforms import ToTensor
from fastai.torch_core import TensorCategory, TensorImage, to_device
from fastai.vision.core import PILImage
from fasttransform import Transform
from PIL import Image

from .augment import AlbumentationsTransform, draw_from
from .data import ImageData, read_picture
from .errors import InputError

__all__ = ["BatchDL", "LoaderError", "PictureOf", "PictureStore"]


class LoaderError(InputError):
    "A batch could not be made: a worker process died, hung or met a picture that it could not augment"
    exit_status = 1


class PictureStore:
    """The uint8 pictures and labels of an `ImageData` under one index: training pictures, then the test set.
    Spawned workers share the memory; a pickle outside of that, as `learn.export` makes, holds no pictures."""

    def __init__(self, data: ImageData):
        self.parts, self.n_train, self.classes = [data.x_train, data.x_test], len(data.x_train), data.classes
        self.y = np.concatenate([data.y_train, data.y_test])
        self.size, self.files = data.x_train.shape[1], (data.files_train, data.files_test)

    def __len__(self): return len(self.y)

    def __getitem__(self, i: int) -> np.ndarray:  # (S,S,3) uint8
        return self.parts[0][i] if i < self.n_train else self.parts[1][i - self.n_train]

    def name(self, i: int) -> str:
        "What a person can find picture `i` by"
        part, k = (0, i) if i < self.n_train else (1, i - self.n_train)
        if self.files[part] is None: return f"{('training', 'test')[part]} picture {k}"
        return str(self.files[part][k])

    def take(self, idxs: np.ndarray) -> np.ndarray:  # (N,) int → (N,S,S,3) uint8
        "Copies of pictures `idxs`"
        out = np.empty((len(idxs), self.size, self.size, 3), np.uint8)
        first = idxs < self.n_train
        out[first], out[~first] = self.parts[0][idxs[first]], self.parts[1][idxs[~first] - self.n_train]
        return out

    def __getstate__(self):
        state = self.__dict__ | {"parts": None}
        if get_spawning_popen() is None: return state | {"y": self.y[:0], "files": (None, None)}
        self.parts = [_shareable(p) for p in self.parts]
        return state | {"parts": [_ticket(p) for p in self.parts]}

    def __setstate__(self, state):
        self.__dict__.update(state)
        if self.parts: self.parts = [t.numpy() if torch.is_tensor(t) else np.memmap(**t) for t in self.parts]


def _shareable(x: np.ndarray) -> np.ndarray:
    "`x` if it is mapped from a file, else the same in shared memory"
    if isinstance(x, np.memmap) or getattr(x, "_shared", None) is not None: return x
    return torch.from_numpy(np.array(x)).share_memory_().numpy()


def _ticket(x: np.ndarray):
    "What a worker process needs to see the same memory"
    if not isinstance(x, np.memmap): return torch.from_numpy(x)
    return {"filename": x.filename, "dtype": x.dtype, "mode": "r", "offset": x.offset, "shape": x.shape}


class PictureOf(Transform):
    "An index into the store, a path, bytes, array, tensor or PIL picture as a `PILImage` of the right size"
    input_types = (int, np.integer, str, Path, bytes, np.ndarray, torch.Tensor, Image.Image)

    def __init__(self, store: PictureStore):
        super().__init__()
        self.store = store

    def encodes(self, o):
        if isinstance(o, (int, np.integer)): return PILImage.create(self.store[o])
        if isinstance(o, torch.Tensor): o = o.numpy()
        return PILImage.create(read_picture(o, self.store.size))


class BatchDL(TfmdDL):
    """A `TfmdDL` that makes each batch as a pure function of (seed, epoch, batch number).
    Pictures of a `PictureStore` are augmented straight into one batch tensor; any other dataset or item
    transform goes picture by picture, as in fastai. Worker processes stay alive from epoch to epoch."""

    def __init__(self, dataset, bs=64, shuffle=False, num_workers=0, seed=0, timeout=120, **kwargs):
        super().__init__(dataset, bs=bs, shuffle=shuffle, num_workers=num_workers,
                         timeout=timeout if num_workers else 0, **kwargs)
        self.seed, self.epoch, self.skip, self.pool, self.pool_of = seed, 0, 0, None, None

    def new(self, dataset=None, cls=None, **kwargs):
        return super().new(dataset, cls, **{"seed": self.seed, **kwargs})

    def set_epoch(
        self,
        epoch: int,     # what the next iteration draws from; each iteration moves on by one by itself
        skip: int = 0,  # batches to leave out at its start: a run resumed within the epoch
    ) -> None:
        "Choose the epoch that the next iteration shows"
        self.epoch, self.skip = epoch, skip

    def randomize(self): pass  # nothing here draws from a generator that moves

    def get_idxs(self):
        n = len(self.dataset) if self.n is None else self.n
        if not self.shuffle: return np.arange(n)
        return np.random.default_rng([self.seed, self.epoch, 1]).permutation(n)

    def __iter__(self):
        self.before_iter()
        idxs, epoch, skip = np.asarray(self.get_idxs()), self.epoch, self.skip
        self.epoch, self.skip = epoch + 1, 0
        keys = [(epoch, b, idxs[b * self.bs:(b + 1) * self.bs]) for b in range(skip, len(self))]
        for batch in self._in_workers(keys) if self._worth_workers() else map(self.make_batch, keys):
            if self.device: batch = to_device(batch, self.device, non_blocking=self.pin_memory)
            yield self.after_batch(batch)
        self.after_iter()

    def make_batch(self, key):
        "The batch of `key` = (epoch, batch number, indices), on the CPU, before the batch transforms"
        epoch, number, idxs = key
        key = (self.seed, epoch if self._training else 0, number)
        store, aug = self.direct()
        if store is not None: return self._make_direct(store, aug, key, idxs)
        keyed = [t for t in self.after_item.fs if isinstance(t, AlbumentationsTransform)]
        with _drawing_from(keyed, key, self._split_idx):
            return self.do_batch([self.do_item(int(i)) for i in idxs])

    def _make_direct(self, store, aug, key, idxs):
        items = np.asarray(self.dataset.items)[idxs]
        if aug is None: x = store.take(items)
        else:
            draw_from(aug, *key)
            x = _augmented(store, aug, items)
        batch = (TensorImage(torch.from_numpy(x).permute(0, 3, 1, 2)),)
        if len(self.dataset.tls) == 1: return batch
        return *batch, TensorCategory(torch.from_numpy(store.y[items]))

    def direct(self):
        """The store and the augmentation if this loader's items are pictures of a `PictureStore` that go
        through nothing but Albumentations, else (None, None)"""
        tls = self.dataset.tls if isinstance(self.dataset, Datasets) else ()
        first = [f for f in tls[0].tfms.fs if f.name != "noop"] if tls else []
        ours = [t for t in self.after_item.fs if not isinstance(t, ToTensor) and t.name != "noop"]
        plain = len(first) == 1 and type(first[0]) is PictureOf and _indices(tls[0].items) and len(tls) <= 2
        if not plain or self.before_batch.fs or len(ours) > 1: return None, None
        if not all(type(t) is AlbumentationsTransform for t in ours): return None, None
        return first[0].store, ours[0].of(self._split_idx) if ours else None

    @property
    def _split_idx(self): return getattr(self.dataset, "split_idx", None)

    @property
    def _training(self): return self._split_idx in (0, None)

    def _worth_workers(self):
        "Whether batches are made in worker processes: not if making one is no more than copying pictures"
        store, aug = self.direct()
        return self.fake_l.num_workers > 0 and (store is None or aug is not None)

    def _in_workers(self, keys):
        pool_of = (self.fake_l.num_workers, self.pin_memory, self.dataset,
                   *self.after_item.fs, *self.before_batch.fs)
        known = self.pool_of or ()
        if len(pool_of) != len(known) or any(a is not b for a, b in zip(pool_of, known)):
            self.close()
            self.pool, self.pool_of = self._start_workers(), pool_of
        self.pool.sampler.keys = keys
        batches = iter(self.pool)
        for key in keys:
            try: batch = next(batches)
            except RuntimeError as e:
                self.close()
                raise LoaderError(self._what_failed(key, e)) from e
            yield tuple(batch) if isinstance(batch, list) else batch   # pinning makes lists of tuples

    def _what_failed(self, key, error) -> str:
        epoch, number, idxs = key
        store = self.direct()[0]
        ends = np.asarray(self.dataset.items)[idxs[[0, -1]]]
        names = [store.name(i) if store else f"item {i}" for i in ends]
        return (f"a worker process failed at batch {number} of epoch {epoch} ({names[0]} … {names[1]}): "
                f"{str(error).splitlines()[0]} Try num_workers=0 to see where.")

    def _start_workers(self):
        light = copy(self)  # what a worker needs, without the device's transforms
        light.pool = light.pool_of = light.fake_l = light.after_batch = None
        return torch.utils.data.DataLoader(
            _Batches(light), batch_size=None, collate_fn=_as_it_is, sampler=_Keys(),
            num_workers=self.fake_l.num_workers, timeout=self.timeout, pin_memory=self.pin_memory,
            persistent_workers=True, worker_init_fn=_one_thread)

    def close(self) -> None:
        "End the worker processes; the next iteration starts new ones"
        self.pool = self.pool_of = None

    def __getstate__(self): return self.__dict__ | {"pool": None, "pool_of": None}


class _Keys:
    "The sampler of a pool of workers: the keys of the epoch at hand"
    keys = ()
    def __iter__(self): return iter(self.keys)
    def __len__(self): return len(self.keys)


class _Batches(torch.utils.data.Dataset):
    "Key → batch: what runs in a worker"
    def __init__(self, dl): self.dl = dl
    def __getitem__(self, key): return self.dl.make_batch(key)


def _as_it_is(batch): return batch


def _one_thread(_): torch.set_num_threads(1)


@contextmanager
def _drawing_from(tfms, key: tuple[int, ...], split_idx):
    """Every draw of the item transforms inside is a function of `key`; the process's own generators are as
    before afterwards"""
    bits = np.random.SeedSequence(key).generate_state(2)
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(int(bits[0])), np.random.seed(bits[1])
    torch.random.default_generator.manual_seed(int(bits[0]))
    for t in tfms:
        t.keyed = True
        if t.of(split_idx) is not None: draw_from(t.of(split_idx), *key)
    try: yield
    finally:
        random.setstate(before[0]), np.random.set_state(before[1]), torch.random.set_rng_state(before[2])
        for t in tfms: t.keyed = False


def _indices(items) -> bool:
    if isinstance(items, np.ndarray): return items.dtype.kind == "i"
    return len(items) > 0 and isinstance(items[0], (int, np.integer))


def _augmented(store: PictureStore, aug, items: np.ndarray) -> np.ndarray:
    "Pictures `items`, each through `aug`, as one (N,h,w,3) uint8 array"
    out = None
    for k, i in enumerate(items):
        try: x = aug(image=store[i])["image"]
        except Exception as e:
            raise LoaderError(f"augmentation failed on {store.name(i)}: {type(e).__name__}: {e}") from e
        if out is None: out = np.empty((len(items), *x.shape), x.dtype)
        if x.shape != out.shape[1:]:
            raise LoaderError(f"augmentation made {store.name(i)} {x.shape} beside {out.shape[1:]}. "
                              "End it with a crop or a resize to one size.")
        out[k] = x
    return out
