"""Atomic writes: a reader sees the old file or the new one, never a part; JSON and sha256 of files.

    save_atomically("runs/demo/notes.txt", b"...")
    write_json("runs/demo/results.json", {"accuracy": 0.95})
"""
import errno
import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from .errors import InputError

__all__ = ["TEMPORARY", "SaveError", "alone", "digest", "read_json", "save_atomically", "sha256_of", "sweep",
           "write_json"]

log = logging.getLogger("cifar_fastai")
TEMPORARY = re.compile(r"\..+\.(\d+)-[0-9a-f]{8}\.tmp")   # the second part is a process
LIMIT = 1 << 24      # bytes of a JSON file; a real one has thousands


class SaveError(InputError):
    "A file could not be written; the one that was there is as it was"
    exit_status = 1


def save_atomically(
    path: str | Path,  # final name; written beside it first, then renamed
    data: bytes | str, # or anything with the buffer protocol; of text what is no UTF-8 is escaped
) -> str:              # sha256 of what is now on disk
    "Write `data` to `path` so that a reader sees the old file or the new one. Raises: SaveError"
    path = Path(path)
    if isinstance(data, str): data = data.encode(errors="backslashreplace")     # names need not be UTF-8
    temp = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temp, "xb") as file:                     # rights follow the umask
            file.write(data)
            file.flush()
            os.fsync(file.fileno())                        # waits until the disk has it
        os.replace(temp, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError): temp.unlink(missing_ok=True)
        if not isinstance(error, OSError): raise
        size = memoryview(data).nbytes
        raise SaveError(f"cannot write {path} ({size:,} bytes): {error.strerror or error}. "
                        "Make room or choose another folder; what was there before is unchanged.") from error
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    "Make a rename in `folder` survive a power cut, where the system can do that"
    if os.name == "nt": return
    fd = os.open(folder, os.O_RDONLY)
    try: os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL: raise             # some network file systems know no such thing
    finally: os.close(fd)


def sweep(folder: str | Path) -> None:
    "Remove the temporary files that dead processes left anywhere in `folder`"
    for path in Path(folder).rglob("*.tmp"):
        if (temp := TEMPORARY.fullmatch(path.name)) and not _others(int(temp[1])):
            with suppress(OSError): path.unlink(missing_ok=True)


@contextmanager
def alone(
    path: Path,               # what is made, or fetched; its folder is made too
) -> Iterator[bool]:          # whether this process waited for another one, which may have made it
    "One process at a time makes `path`; the lock of a dead one is free"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, waited = FileLock(path.with_suffix(".lock")), False
    try: lock.acquire(blocking=False)
    except Timeout:
        log.info("waiting for the process that makes %s", path)
        waited = lock.acquire() is not None
    try: yield waited
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)     # while it is held: those who wait make their own
        lock.release()


def write_json(path: str | Path, value) -> str:
    "Save `value` as indented JSON, atomically; returns its sha256. Raises: ValueError for NaN"
    return save_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _others(pid: int) -> bool:
    "Whether `pid` is a living process other than this one"
    if pid == os.getpid(): return False
    try: os.kill(pid, 0)
    except (ProcessLookupError, OverflowError): return False
    except PermissionError: return True
    return True


def digest(
    array: np.ndarray,   # C-contiguous
) -> str:
    "sha256 over the sha256 of each 16 MB of `array`, side by side on all cores"
    flat = array.reshape(-1).view(np.uint8)
    pieces = (flat[i:i + (1 << 24)] for i in range(0, len(flat), 1 << 24))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(lambda p: hashlib.sha256(p).digest(), pieces)
        return hashlib.sha256(b"".join(parts)).hexdigest()


def read_json(path: str | Path) -> dict:
    "The JSON object in `path`. Raises: InputError for anything else"
    try:
        with open(path, "rb") as file: text = file.read(LIMIT + 1)
        if len(text) > LIMIT: raise ValueError(f"more than {LIMIT:,} bytes")
        value = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} cannot be read as JSON ({why}). Mend it, or start a new run.") from error
    if isinstance(value, dict): return value
    raise InputError(f"{path} holds a {type(value).__name__}, no JSON object. Mend it, or start a new run.")


def sha256_of(path: Path) -> str:
    "Of a file, in hexadecimal"
    with open(path, "rb") as file: return hashlib.file_digest(file, "sha256").hexdigest()
