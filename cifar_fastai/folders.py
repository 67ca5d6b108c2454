"""Folders of pictures, train/<class>/* and test/<class>/*: checked, decoded once, then memory-mapped.

    folder = read_folder(Path("pets"), size=32, describe=lambda *arrays: {})
    folder.x_train.shape, folder.files_train[0]         # (N,32,32,3), 'train/cat/1.jpg'"""
import hashlib
import json
import logging
import os
import stat
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from .errors import InputError
from .pictures import RULE, SUFFIXES, read_picture

__all__ = ["Folder", "cache_dir", "digest", "read_folder"]

log = logging.getLogger("cifar_fastai")
LAYOUT = "Give a folder with train/<class>/* and test/<class>/*."
IGNORED = {"thumbs.db", "desktop.ini"}   # and names that begin with a dot; other strangers are refused

Folder = namedtuple("Folder", "x_train y_train x_test y_test classes files_train files_test about")


def read_folder(
    root: Path,      # holds train/<class>/* and test/<class>/*
    size: int,       # side of the pictures
    describe,        # f(x_train, y_train, x_test, y_test, classes) -> dict for JSON, cached with the pictures
) -> Folder:
    """All pictures below `root`; the second time from a memory-mapped cache, while no file has changed.
    Raises: InputError where classes differ, are empty or fewer than two, or a file is no readable picture"""
    root = Path(root)
    classes = _classes(root)
    key = hashlib.sha256(json.dumps([RULE, size, classes]).encode())
    train, test = (_list(root, split, classes, key) for split in ("train", "test"))
    key, cache = key.hexdigest(), _cache_file(root, size)
    n, total = len(train[0]), len(train[0]) + len(test[0])
    x, about = _load_cache(cache, key, (total, size, size, 3))
    if x is None:
        x = _decode(root, train[0], test[0], size, (train[2] + test[2]) / total)
        about = describe(x[:n], train[1], x[n:], test[1], classes)
        _save_cache(cache, key, x, about)
    return Folder(x[:n], train[1], x[n:], test[1], classes, train[0], test[0], about)


def _classes(root):
    "Class names, sorted, the same in train/ and test/"
    found = {}
    for split in ("train", "test"):
        if not (root / split).is_dir(): raise InputError(f"data folder {root} has no {split}/. {LAYOUT}")
        found[split] = {e.name for e in _entries(root / split) if _is_class(e)}
    (a, less), (b, more) = sorted(found.items(), key=lambda f: len(f[1]))
    if less != more:
        odd = sorted(more - less)[:5] or sorted(less - more)[:5]
        raise InputError(f"data folder {root} has {len(less)} classes in {a}/ but {len(more)} in {b}/ "
                         f"(missing: {', '.join(odd)}). {LAYOUT}")
    if len(less) < 2: raise InputError(f"data folder {root} has {len(less)} classes, not 2 or more. {LAYOUT}")
    return tuple(sorted(less))


def _entries(folder):
    with os.scandir(folder) as it:
        return [e for e in it if not e.name.startswith(".") and e.name.lower() not in IGNORED]


def _is_class(entry):
    if entry.is_dir(): return True
    raise InputError(f"{entry.path} lies outside the class folders. Move or remove it.")


def _list(root, split, classes, key):
    "(names relative to `root`, labels, bytes of all); `key` takes in names, sizes and times"
    names, counts, total = [], [], 0
    for c in classes:
        found = sorted((e.name, *_stat(e)) for e in _entries(root / split / c))
        if not found: raise InputError(f"class folder {root / split / c} is empty. Fill or remove it.")
        bad = next((f[0] for f in found if os.path.splitext(f[0])[1].lower() not in SUFFIXES), None)
        if bad: raise InputError(f"{root / split / c / bad} is no picture by its name. Move or remove it.")
        key.update(json.dumps(found).encode())
        names += [f"{split}/{c}/{f[0]}" for f in found]
        counts.append(len(found))
        total += sum(f[1] for f in found)
    return names, np.repeat(np.arange(len(classes), dtype=np.int64), counts), total


def _stat(entry):
    try: info = entry.stat()
    except OSError as e: raise InputError(f"cannot read {entry.path}: {e.strerror}. Replace it.") from e
    if not stat.S_ISREG(info.st_mode): raise InputError(f"{entry.path} is not a file. Move or remove it.")
    return info.st_size, info.st_mtime_ns


def _decode(root, train, test, size, mean_bytes):
    "Every picture into one array; by threads where decoding, outside Python's lock, is most of the work"
    total = len(train) + len(test)
    log.info("decoding %s pictures of %s (once: the result is cached)", f"{total:,}", root)
    x = np.empty((total, size, size, 3), np.uint8)
    base = os.fspath(root)

    def read_some(start):
        for i in range(start, min(start + 256, total)):
            x[i] = read_picture(f"{base}/{train[i] if i < len(train) else test[i - len(train)]}", size)

    threads = os.cpu_count() if mean_bytes > 10_000 else 1   # 32×32 JPEG: 110 µs by one, 150 µs by two
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(read_some, range(0, total, 256)): pass
    return x


# ---------------------------------------------------------------- the cache of decoded pictures

def cache_dir() -> Path | None:
    "`$XDG_CACHE_HOME/cifar_fastai`, else `~/.cache/cifar_fastai`; None where there is no home folder either"
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base): base = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "cifar_fastai" if os.path.isabs(base) else None


def digest(
    array: np.ndarray,   # C-contiguous
) -> str:
    "sha256 over the sha256 of each 16 MB of `array`, side by side on all cores"
    flat = array.reshape(-1).view(np.uint8)
    pieces = (flat[i:i + (1 << 24)] for i in range(0, len(flat), 1 << 24))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(lambda p: hashlib.sha256(p).digest(), pieces)
        return hashlib.sha256(b"".join(parts)).hexdigest()


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
