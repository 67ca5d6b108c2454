"""Folders of pictures, or a .zip of one: checked, decoded once, then memory-mapped.

    folder = read_folder(Path("pets"), size=32, describe=lambda *arrays: {})
    folder.x_train.shape, folder.files_train[0]         # (N,32,32,3), 'train/cat/1.jpg'"""
import hashlib
import json
import logging
import os
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..files import digest
from ..machine import cache_dir
from .layouts import LAYOUT, arrange
from .pictures import RULE, read_picture
from .trees import open_tree

__all__ = ["Folder", "LAYOUT", "read_folder"]

log = logging.getLogger("cifar_fastai")

Folder = namedtuple("Folder", "x_train y_train x_test y_test classes files_train files_test about")


def read_folder(
    root: Path,      # a folder, or a .zip of one, in one of the layouts of docs/your-own-pictures.md
    size: int,       # side of the pictures
    describe,        # f(x_train, y_train, x_test, y_test, classes) -> dict for JSON, cached with the pictures
) -> Folder:         # without a test set of its own: `x_test` is empty, `about` None
    """All pictures below `root`; the second time from a memory-mapped cache, while no file has changed.
    Raises: InputError where classes differ, are empty or fewer than two, or a file is no readable picture"""
    root = Path(root)
    with open_tree(root) as tree:
        layout = arrange(tree)
        for line in layout.lines: log.warning("%s: %s", root, line)
        files, n = layout.train + layout.test, len(layout.train)
        key = hashlib.sha256(json.dumps([RULE, size, layout.classes, n, files]).encode()).hexdigest()
        names, labels = [f[0] for f in files], np.array([f[1] for f in files], np.int64)
        cache = _cache_file(root, size)
        x, about = _load_cache(cache, key, (len(files), size, size, 3))
        if x is None:
            x = _decode(tree, names, size, sum(f[2][0] for f in files) / len(files))
            arrays = x[:n], labels[:n], x[n:], labels[n:]
            about = describe(*arrays, layout.classes) if layout.test else None
            _save_cache(cache, key, x, about)
    return Folder(x[:n], labels[:n], x[n:], labels[n:], layout.classes, names[:n], names[n:], about)


def _decode(tree, names, size, mean_bytes):
    "Every picture into one array; by threads where decoding, outside Python's lock, is most of the work"
    log.info("decoding %s pictures of %s (once: the result is cached)", f"{len(names):,}", tree.root)
    x = np.empty((len(names), size, size, 3), np.uint8)

    def read_some(start):
        for i in range(start, min(start + 256, len(names))):
            x[i] = read_picture(tree.source(names[i]), size, name=f"{tree.root}/{names[i]}")

    threads = os.cpu_count() if mean_bytes > 10_000 else 1   # 32×32 JPEG: 110 µs by one, 150 µs by two
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(read_some, range(0, len(names), 256)): pass
    return x


# ---------------------------------------------------------------- the cache of decoded pictures


def _cache_file(root, size):
    "One file for each folder and size, so that a changed folder replaces its own"
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return cache_dir() and cache_dir() / f"{place}-{size}.npy"


def _load_cache(path, key, shape):
    "(pictures, about) when the file is whole and of this very listing, else (None, None)"
    if path is None or not path.exists(): return None, None
    try:
        x = np.lib.format.open_memmap(path, mode="r")
        with open(path, "rb") as f:
            f.seek(x.offset + x.nbytes)
            tail = json.loads(f.read(1 << 20))
        if tail["key"] != key: return None, None
        if x.shape != shape or tail.pop("seal") != _seal(tail, x): raise ValueError("checksum differs")
        return np.asarray(x), tail["about"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        log.warning("cached pictures %s are damaged (%s): decoding again", path, e)
        return None, None


def _save_cache(path, key, x, about):
    "The array as .npy with a JSON tail (key, sha256) in one file that appears whole or not at all"
    if path is None: return log.warning("no home folder, no XDG_CACHE_HOME: decoded pictures are not cached")
    part = path.with_suffix(f".{os.getpid()}.part")
    tail = {"key": key, "about": about}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_stale_parts(path)
        with open(part, "wb") as f:
            np.lib.format.write_array(f, x, allow_pickle=False)
            f.write(json.dumps(tail | {"seal": _seal(tail, x)}).encode())
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as e:
        log.warning("cannot cache pictures in %s (%s): going on without", path.parent, e.strerror or e)
    finally:
        with suppress(OSError): part.unlink()


def _seal(tail, x): return hashlib.sha256((json.dumps(tail, sort_keys=True) + digest(x)).encode()).hexdigest()


def _drop_stale_parts(path):
    "What runs killed more than an hour ago left behind"
    for old in path.parent.glob(f"{path.stem}.*.part"):
        if time.time() - old.stat().st_mtime > 3600: old.unlink(missing_ok=True)
