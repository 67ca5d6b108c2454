"""What a machine runs out of, and what a stopped run has left, said in one line.

    with plain_failures("runs/demo", bs=512): ...
"""
import errno
from contextlib import contextmanager
from pathlib import Path

import torch

from .checkpoints import CheckpointStore, Stopped
from .errors import InputError
from .files import SaveError

__all__ = ["OutOfMemory", "plain_failures"]

NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class OutOfMemory(InputError):
    "The device, or this process, has no room for a batch"
    exit_status = 1


@contextmanager
def plain_failures(
    folder: str | Path,   # of the run
    bs: int,              # pictures a batch, as asked for
):
    """Memory or disk that runs out is told in one line, a signal with what to do next.
    Raises: OutOfMemory, SaveError, Stopped"""
    try: yield
    except Stopped as stop:
        if not (Path(folder) / "checkpoints").exists(): raise
        raise Stopped(f"{stop} Go on with --resume: {folder} is whole.", stop.signum) from None
    except InputError: raise
    except (MemoryError, RuntimeError) as error:
        if not _for_memory(error): raise
        saved = CheckpointStore(Path(folder) / "checkpoints").newest()
        kept = f" Last good checkpoint: {saved}; with more memory go on by --resume." if saved else ""
        found = (str(error).splitlines() or ["no room"])[0].rstrip(".")
        raise OutOfMemory(f"out of memory with batches of up to {bs} ({found[:200]}). Start a run with "
                          f"smaller ones, such as --bs {max(1, bs // 2)}.{kept}") from error
    except OSError as error:
        if error.errno not in NO_DISK: raise
        raise SaveError(f"cannot write in {folder}: {error.strerror}. Make room, then go on with --resume; "
                        "what was saved before is unchanged.") from error


def _for_memory(error: Exception) -> bool:
    "Whether `error` says that memory ran out; on a CPU torch has no type of its own for that"
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)
