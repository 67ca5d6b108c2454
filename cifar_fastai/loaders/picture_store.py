"""All pictures of a data set under one index, shared by worker processes, left out of an exported Learner.

    store = PictureStore(load_data("digits"))
    store[0], store.y[0], store.name(0)      # (32,32,3) uint8, its label, what a person can find it by
"""
import os
from multiprocessing.context import get_spawning_popen
from pathlib import Path

import numpy as np
import torch
from fastai.vision.core import PILImage
from fasttransform import Transform
from PIL import Image

from ..data import ImageData, read_picture
from ..errors import InputError

__all__ = ["LabelOf", "PictureOf", "PictureStore"]


class PictureStore:
    """The uint8 pictures and labels of an `ImageData` under one index: training pictures, then the test set.
    Spawned workers share the memory; a pickle outside of that, as `learn.export` makes, holds no pictures."""

    def __init__(self, data: ImageData):
        self.parts, self.n_train, self.classes = [data.x_train, data.x_test], len(data.x_train), data.classes
        self.y = np.concatenate([data.y_train, data.y_test])
        self.size, self.files = data.x_train.shape[1], (data.files_train, data.files_test)
        self.mapped, self.seen, self.tickets = [_file(p) for p in self.parts], None, None

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

    def __deepcopy__(self, memo): return self   # never written to

    def __getstate__(self):
        state = self.__dict__ | {"parts": None, "tickets": None}
        if get_spawning_popen() is None: return state | {"y": self.y[:0], "files": (None, None)}
        if self.seen != (seen := [_file(p) for p in self.parts]):                # one for all workers
            same = [a == b for a, b in zip(seen, self.mapped)]
            self.seen, self.tickets = seen, [_ticket(p, s) for p, s in zip(self.parts, same)]
        return state | {"parts": self.tickets}

    def __setstate__(self, state):
        self.__dict__.update(state)
        if self.parts: self.parts = [t.numpy() if torch.is_tensor(t) else np.memmap(**t) for t in self.parts]


def _root(x: np.ndarray) -> np.ndarray:
    while isinstance(x.base, np.ndarray): x = x.base
    return x


def _file(x: np.ndarray) -> tuple:
    "Which file `x` is mapped from, if any: another process may put a new cache in its place"
    try: about = os.stat(_root(x).filename)
    except (AttributeError, OSError, TypeError): return ()
    return about.st_dev, about.st_ino, about.st_mtime_ns


def _ticket(x: np.ndarray, same: bool):
    "What a worker process needs to see `x`: where it is mapped from, if still the same, or a shared copy"
    root = _root(x)
    if not isinstance(root, np.memmap) or not x.flags.c_contiguous or not same:
        return torch.from_numpy(np.array(x)).share_memory_()
    offset = root.offset + x.ctypes.data - root.ctypes.data
    return {"filename": root.filename, "dtype": x.dtype, "mode": "r", "offset": offset, "shape": x.shape}


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


class LabelOf(Transform):
    "The class name of an index into the store, or of a path `…/<class>/<file>`"
    input_types = PictureOf.input_types   # `test_dl` asks for them

    def __init__(self, store: PictureStore):
        super().__init__()
        self.store = store

    def encodes(self, o) -> str:
        if isinstance(o, (int, np.integer)): return self.store.classes[self.store.y[o]]
        if isinstance(o, (str, Path)): return Path(o).parent.name
        raise InputError(f"no label can be read off a {type(o).__name__}. "
                         "Give indices or paths, or with_labels=False.")
