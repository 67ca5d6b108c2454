"""Worker processes that make batches and live as long as the loader; one that dies or hangs raises soon.

    workers = Workers(make_batch, n=2)
    for batch in workers.batches(keys, where=str): ...
    workers.close()
"""
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import torch
from fastcore.basics import noop

from ..errors import InputError

__all__ = ["Workers", "LoaderError", "worker_failed"]

LOOK = 2.0     # seconds between two looks at whether the workers are alive
_running = {}  # loaders by Workers: part of a cycle, one would be collected queues first, its processes last


class LoaderError(InputError, RuntimeError):
    "A batch could not be made: a worker process died, hung or met a picture that it could not augment"
    exit_status = 1


class Workers:
    "`n` processes that call `make(key)`; a copy of `make` goes to each when they are started"

    def __init__(
        self,
        make: Callable,            # key → batch, on the CPU
        n: int,                    # processes
        pin_memory: bool = False,  # batches come in page-locked memory, from where a GPU fetches them faster
        limit: float = 120.0,      # seconds that a batch may take
    ):
        self.limit, self.started, self.keys, self.at_work = limit, None, [], False
        self.another = lambda: Workers(make, n, pin_memory, limit)
        self.loader = torch.utils.data.DataLoader(
            _Batches(make), batch_size=None, collate_fn=noop, sampler=self.keys, num_workers=n,
            timeout=min(LOOK, limit), pin_memory=pin_memory, persistent_workers=True, worker_init_fn=_begin)
        _running[id(self)] = self.loader
        weakref.finalize(self, _running.pop, id(self), None)

    @property
    def _processes(self) -> list: return getattr(self.started, "_workers", [])

    def batches(
        self,
        keys: Sequence,   # what `make` is called with
        where: Callable,  # key → what a person calls that batch
    ) -> Iterator:
        """The batch of each key, in order. Asked for within an iteration that goes on afterwards, they come
        from processes of their own. Raises: InputError where `make` did; LoaderError for a lost process"""
        if self.at_work:
            with closing(self.another()) as own: yield from own.batches(keys, where)
            return
        self.keys[:], self.at_work, done = keys, True, 0
        try:
            self._start()
            for key in keys:
                batch, failed = self._next()
                if failed is not None: raise LoaderError(worker_failed(failed, where(key)))
                done += 1
                if isinstance(batch, InputError): raise batch
                yield tuple(batch) if isinstance(batch, list) else batch   # pinning makes lists of tuples
        finally:
            self.at_work = False
            if done < len(keys): self._kill()

    def close(self) -> None:
        "End the processes; they are started again when batches are asked for"
        self.started = self.loader._iterator = None

    def _kill(self):
        "As `close`, at once: batches that nobody waits for any more may take as long as they like"
        for w in self._processes: w.kill()
        self.close()

    def _start(self):
        """Begin an epoch, with new processes where those of before are dead or late. torch would raise errors
        out of a signal handler wherever the program stands when one dies; here a batch is waited for first"""
        main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
        before = signal.getsignal(signal.SIGCHLD) if main else None
        try:
            with _ctrl_c_waits():
                try: self.started = iter(self.loader)
                except (RuntimeError, OSError):
                    self._kill()
                    self.started = iter(self.loader)
        finally:
            if before is not None: signal.signal(signal.SIGCHLD, before)
        if getattr(self.started, "_worker_pids_set", False):   # nor by the handler of another loader
            torch.utils.data._utils.signal_handling._remove_worker_pids(id(self.started))
            self.started._worker_pids_set = False

    def _next(self) -> tuple:
        "(batch, None) or (None, what went wrong): raised here, a traceback would keep the processes alive"
        until = time.monotonic() + self.limit
        while self.started is not None:
            try: return next(self.started), None
            except (ConnectionError, EOFError): failed = "it exited unexpectedly, while handing over a batch"
            except (RuntimeError, OSError) as e: failed = str(e) or type(e).__name__
            if "timed out" not in failed: return None, failed
            if time.monotonic() >= until: return None, f"no batch within {self.limit:g} seconds"
        return None, "closed in the middle of an epoch"


class _Batches(torch.utils.data.Dataset):
    "Key → batch, or the error to show: what runs in a worker"
    def __init__(self, make): self.make = make

    def __getitem__(self, key):
        try: return self.make(key)
        except InputError as e: return e   # raised here, torch would wrap it in the worker's traceback


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    "Processes that are started inside hear of no Ctrl-C before `_begin` has them ignore it"
    masks = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else None
    try: yield
    finally:
        if masks: signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(_):
    "In a new worker: one thread, and Ctrl-C is for the parent, which may want this batch first"
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"): signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def worker_failed(what: str, where: str) -> str:
    "What to say of a worker process that is dead or late"
    lines = what.strip().splitlines()
    error = lines[-1 if lines[0].startswith("Caught ") else 0].rstrip(". ")   # "Caught": a traceback follows
    return f"a worker process failed at {where}: {error}. Try num_workers=0 (--workers 0) to see where."
