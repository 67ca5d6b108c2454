"""One process a folder, `with RunLock("runs/demo"):`; a second one is refused, a dead one's lock is free."""
import os
from contextlib import suppress
from pathlib import Path

from ..errors import InputError

try:
    import fcntl
except ImportError:                                       # Windows has no flock; there nothing is locked
    fcntl = None

__all__ = ["RunLock"]

_held: set[int] = set()                                   # descriptors that a forked child must let go of


def _let_go() -> None:
    "In a forked child: close its copies, or a worker that outlives a killed run would keep the folder locked"
    for fd in _held: os.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"): os.register_at_fork(after_in_child=_let_go)


class RunLock:
    "Hold `folder` for this process while the `with` block runs. Raises: InputError, naming who holds it"

    def __init__(self, folder: str | Path): self.path, self.fd = Path(folder) / ".lock", None

    def __enter__(self):
        if fcntl is None: return self
        while self.fd is None: self.fd = self._take()
        _held.add(self.fd)
        self.pid = os.getpid()
        os.ftruncate(self.fd, 0)
        os.write(self.fd, str(self.pid).encode())
        return self

    def __exit__(self, *exc):
        if self.fd is None or self.pid != os.getpid(): return
        self.path.unlink(missing_ok=True)                 # while it is still held, so it is our own
        _held.discard(self.fd)
        os.close(self.fd)
        self.fd = None

    def _take(self) -> int | None:
        "A locked descriptor; None where the file was removed meanwhile by its last holder"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"cannot write in {self.path.parent}: {error.strerror}. "
                             "Choose another folder.") from error
        try: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(fd, 20).decode() or "that is just starting"
            os.close(fd)
            if not isinstance(error, BlockingIOError):
                raise InputError(f"cannot lock {self.path.parent}: {error.strerror}. "
                                 "Choose a folder on a local disk.") from error
            raise InputError(f"{self.path.parent} is in use by process {holder}. "
                             "Wait for it, stop it, or choose another folder.") from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), self.path.stat()): return fd
        os.close(fd)
        return None
