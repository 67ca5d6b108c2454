"""Folders of pictures, or a .zip of one: checked, decoded once, then mapped into memory.

    folder = read_folder(Path("pets"), size=32, describe=lambda *arrays: {})
    folder.x_train.shape, folder.files_train[0]         # (N,32,32,3), 'train/cat/1.jpg'

`decoded` makes one file of them, which several processes build and all map. While it is built it is called
`.part`, beside a `.done` with a byte for each piece that is on disk: a build that was killed goes on from
there. One process builds, and those that want the same pictures wait for it.
"""
import hashlib
import json
import logging
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from ..errors import InputError
from ..files import alone, digest
from ..machine import cache_dir
from .layouts import arrange
from .pictures import RULE, read_picture
from .trees import open_tree

__all__ = ["Folder", "decoded", "read_folder", "serve"]

log = logging.getLogger("cifar_fastai")
PIECE = 2048        # pictures that are decoded and marked at once
MANY = 20_000       # pictures from which on processes are worth their start
Folder = namedtuple("Folder", "x_train y_train x_test y_test classes files_train files_test about")


class DecoderKilled(InputError):
    "A process that decodes is gone, for lack of memory as a rule; what is on disk is kept"
    exit_status = 1


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
        def described(x):
            return describe(x[:n], labels[:n], x[n:], labels[n:], layout.classes) if layout.test else None
        large = sum(f[2][0] for f in files) > 10_000 * len(files)        # bytes of the files
        x, about = decoded(root, names, size, tree.source, key, described, large)
    return Folder(x[:n], labels[:n], x[n:], labels[n:], layout.classes, names[:n], names[n:], about)


def _cache_file(root: Path, size: int) -> Path | None:
    "One file for each folder and size, so that a changed folder replaces its own; None without a home folder"
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return cache_dir() and cache_dir() / f"{place}-{size}.npy"


def decoded(
    root: Path,                # a folder, or a .zip of one
    names: Sequence[str],      # of the pictures in it
    size: int,                 # side of the pictures
    source: Callable,          # name → a path or the bytes of the picture
    key: str,                  # of the listing: another one is decoded anew
    describe: Callable,        # f(pictures) -> dict for JSON, cached with them
    large: bool,               # whether decoding, outside Python's lock, is most of the work
) -> tuple[np.ndarray, dict]:  # (N,size,size,3) uint8, mapped where there is a place for a cache
    "All pictures in the order of their names. Raises: InputError for one that cannot be read"
    cache, shape = _cache_file(root, size), (len(names), size, size, 3)
    pieces = [names[k:k + PIECE] for k in range(0, len(names), PIECE)]
    reader = partial(_reader, root, size, source, large, len(names))
    if cache is None: log.warning("no home folder, no XDG_CACHE_HOME: decoded pictures are not cached")
    elif found := _load(cache, key, shape): return found
    else:
        try:
            with alone(cache) as waited:
                if waited and (found := _load(cache, key, shape)): return found
                with reader() as read: return _build(cache, key, shape, pieces, describe, read)
        except InputError:
            with suppress(OSError): cache.parent.rmdir()       # nothing is left of a folder that is refused
            raise
        except OSError as e:
            log.warning("cannot cache pictures in %s (%s): going on without", cache.parent, e.strerror or e)
    with reader() as read: x = np.concatenate(list(read(pieces)))
    return x, describe(x)


def decode(source: Callable, names: Sequence[str], *, size: int, root: Path) -> np.ndarray:
    "The pictures of `names`, one by one"
    x = np.empty((len(names), size, size, 3), np.uint8)
    for i, name in enumerate(names): x[i] = read_picture(source(name), size, name=f"{root}/{name}")
    return x


@contextmanager
def _reader(root: Path, size: int, source: Callable, large: bool, n: int) -> Iterator[Callable]:
    "A function that reads pieces; on all cores where that pays (32×32 JPEG: 110 µs by one, 150 by two)"
    log.info("decoding %s pictures of %s (once: the result is cached)", f"{n:,}", root)
    here = partial(decode, source, size=size, root=root)
    threads = (os.cpu_count() or 1) if large or n >= MANY else 1
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(threads)
        stack.callback(pool.shutdown, cancel_futures=True)     # Ctrl-C waits for no piece that is not begun
        read = stack.enter_context(_processes(root, size)) if n >= MANY else here

        def in_order(pieces: Iterable) -> Iterator[np.ndarray]:
            waiting = []                                   # few: pixels that wait take memory
            for piece in pieces:
                waiting.append(pool.submit(read, piece))
                if len(waiting) > 2 * threads: yield waiting.pop(0).result()
            while waiting: yield waiting.pop(0).result()
        yield in_order


@contextmanager
def _processes(root: Path, size: int) -> Iterator[Callable]:
    "`decode` by processes, one a core, that end with this one; they hold none of its locks"
    free, n = SimpleQueue(), os.cpu_count() or 1
    package = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])}
    script = f"from {__name__} import serve; serve(*__import__('sys').argv[1:])"
    command = [sys.executable, "-c", script, os.fspath(root), str(size)]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env,
                                start_new_session=True) for _ in range(n)]      # Ctrl-C is ours to hear
    for process in started: free.put(process)

    def read(names: Sequence[str]) -> np.ndarray:
        process = free.get()
        try:
            with suppress(BrokenPipeError):                # the answer is short then, too
                process.stdin.write(json.dumps(list(names)).encode() + b"\n")
                process.stdin.flush()
            answer = process.stdout.readline()
            if answer.endswith(b"\n") and (failed := json.loads(answer)): raise InputError(failed)
            data = process.stdout.read(len(names) * size * size * 3)
            if len(data) < len(names) * size * size * 3:
                why = "for lack of memory as a rule" if process.wait() < 0 else f"status {process.wait()}"
                raise DecoderKilled(f"a process that decodes pictures has ended ({why}). Make room and start "
                                    "again: what is decoded is kept.")
            return np.frombuffer(data, np.uint8).reshape(-1, size, size, 3)
        finally: free.put(process)
    try: yield read
    finally:
        for process in started:
            process.kill()
            process.communicate()


def serve(root: str, size: str) -> None:
    "One of `_processes`: a line of names in, an empty line or what failed and the pixels out"
    with open_tree(root) as tree:
        for line in sys.stdin.buffer:
            names, pixels, failed = json.loads(line), b"", ""
            try: pixels = decode(tree.source, names, size=int(size), root=Path(root)).tobytes()
            except InputError as e: failed = str(e)
            sys.stdout.buffer.write(json.dumps(failed).encode() + b"\n" + pixels)
            sys.stdout.buffer.flush()


# ---------------------------------------------------------------- the file


def _load(path: Path, key: str, shape: tuple) -> tuple[np.ndarray, dict] | None:
    "(pictures, about) when the file is whole and of this very listing"
    if not path.exists(): return None
    try:
        x = np.lib.format.open_memmap(path, mode="r")
        with open(path, "rb") as f:
            f.seek(x.offset + x.nbytes)
            tail = json.loads(f.read(1 << 20))
        if tail["key"] != key: return None
        if x.shape != shape or tail.pop("seal") != _seal(tail, x): raise ValueError("checksum differs")
        return np.asarray(x), tail["about"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        log.warning("cached pictures %s are damaged (%s): decoding again", path, e)
        return None


def _build(cache: Path, key: str, shape: tuple, pieces: list, describe: Callable, read: Callable):
    "The array as .npy with a JSON tail (key, sha256), piece by piece; in the end it appears under its name"
    part, done = cache.with_suffix(".part"), cache.with_suffix(".done")
    try:
        marks = _marks(done, part, key, shape, len(pieces))
        due = [k for k, mark in enumerate(marks) if not mark]
        if len(due) < len(pieces):
            log.info("%d of %d parts are decoded already", len(pieces) - len(due), len(pieces))
        start = np.lib.format.open_memmap(part, mode="r").offset
        with open(part, "r+b") as f, open(done, "r+b") as d:
            new = read(pieces[k] for k in due)
            for k, x in zip(due, _shown(new, len(pieces), len(pieces) - len(due))):
                _write(f, start + k * PIECE * x[0].nbytes, x.data)
                _write(d, len(key) + k, b"\1")          # after what it says is on disk
        x = np.lib.format.open_memmap(part, mode="r")
        tail = {"key": key, "about": describe(x)}
        with open(part, "r+b") as f:
            f.truncate(x.offset + x.nbytes)                # the tail of a build that was killed
            _write(f, x.offset + x.nbytes, json.dumps(tail | {"seal": _seal(tail, x)}).encode())
    except DecoderKilled: raise
    except (OSError, InputError):                          # of no use: no room, or other files will come
        for path in (part, done): path.unlink(missing_ok=True)
        raise
    os.replace(part, cache)
    done.unlink()
    return np.asarray(np.lib.format.open_memmap(cache, mode="r")), tail["about"]


def _write(file, at: int, data) -> None:
    "Put `data` on disk"
    file.seek(at)
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _marks(done: Path, part: Path, key: str, shape: tuple, n: int) -> bytes:
    "A byte for each piece: 1 where it is on disk, of this very listing; else a new file of zeros is begun"
    with suppress(OSError, ValueError):
        found = done.read_bytes()
        same = found[:len(key)] == key.encode() and len(found) == len(key) + n
        if same and np.lib.format.open_memmap(part, mode="r").shape == shape: return found[len(key):]
    done.unlink(missing_ok=True)
    np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
    done.write_bytes(key.encode() + bytes(n))
    return bytes(n)


def _shown(pieces: Iterator, n: int, done: int) -> Iterator:
    "A bar at a terminal, for what takes a while"
    if n < 8 or not sys.stdout.isatty():
        yield from pieces
        return
    from rich.progress import track
    yield from track(pieces, "decoding", total=n, completed=done, transient=True)


def _seal(tail: dict, x: np.ndarray) -> str:
    return hashlib.sha256((json.dumps(tail, sort_keys=True) + digest(x)).encode()).hexdigest()

