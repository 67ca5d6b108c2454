"""Stop a fit at the end of a batch after SIGTERM or Ctrl-C, on any fastai `Learner`."""
import os
import signal
import threading
from contextlib import suppress

from fastai.callback.core import CancelFitException
from fastai.learner import Learner

from ..errors import InputError
from ..training import fitting, inside_fit
from .stop_on_nonfinite import StopFit, last_good

__all__ = ["StopOnSignal", "Stopped"]


class Stopped(InputError):
    "The run was asked to stop: `exit_status` is 143 after SIGTERM, 130 after Ctrl-C"
    def __init__(self, message: str = "", signum: int = signal.SIGINT):
        super().__init__(message)
        self.signum, self.exit_status = signum, 128 + signum


class _StopNow(BaseException):
    "Thrown by a signal where nothing is being trained; no `except Exception` on the way may swallow it"


class StopOnSignal(StopFit):
    """SIGTERM or Ctrl-C stops at the next batch's edge, after a checkpoint; the second at once.
    As a callback it listens during a fit, as `with StopOnSignal() as stop:` in the whole block, where it
    stops at once unless a Learner is at work, and at `check`"""
    order = 990                                           # after `Checkpoint` has saved

    def __init__(self): self.signum, self.handlers, self.in_block = None, {}, False

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "learn" and value is None: self.cleanup()     # taken off the learner, after a failure too

    def __enter__(self):
        self.signum, self.in_block = None, True
        self._install()
        return self

    def __exit__(self, kind, error, trace):
        self.in_block = False
        self._restore()
        ours = _StopNow, CancelFitException, RuntimeError      # of a worker that the signal killed too
        if self.signum and (error is None or isinstance(error, ours)): raise self._stopped() from None

    def check(self):
        "Between two parts of a run: stop here if a signal has come. Raises: Stopped"
        if self.signum: raise self._stopped()

    def before_fit(self):
        self.run = not inside_fit(self.learn)
        if not self.run: return
        if self.in_block and self.signum: self.end(self._stopped())
        if self.in_block: return
        self.signum = None
        self._install()

    @property
    def due(self) -> int | None:
        "The signal to stop by; of processes that train together, one that all have heard of by this batch"
        together = vars(self.learn).get("shared_fit")
        return self.signum if together is None else together.signum

    def after_batch(self):
        if not self.due or inside_fit(self.learn): return      # the fit's own next batch, after a checkpoint
        self.signum = self.due
        self.end(self._stopped(f" at epoch {self.learn.epoch}, batch {self.learn.iter}. "
                               + last_good(self.learn) if fitting(self.learn) else " outside a fit."))

    def after_fit(self):
        self.cleanup()
        super().after_fit()

    def cleanup(self):
        if not self.in_block: self._restore()

    def _stopped(self, where: str = ".") -> Stopped:
        return Stopped(f"stopped by {signal.Signals(self.signum).name}{where}", self.signum)

    def _install(self):
        if threading.current_thread() is not threading.main_thread(): return
        self.pid = os.getpid()
        for signum in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(signum) in (signal.SIG_IGN, None): continue      # nohup has its reason
            self.handlers[signum] = signal.signal(signum, self._on_signal)

    def _restore(self):
        for signum, handler in self.handlers.items():
            if signal.getsignal(signum) == self._on_signal: signal.signal(signum, handler)
        self.handlers.clear()

    def _on_signal(self, signum, frame):
        "Only take note; the next signal finds the handlers that were there before"
        if os.getpid() != self.pid: return                # a worker: its parent decides
        self._restore()
        in_loop = _in_loop(frame)
        if not (self.in_block or in_loop):                # left over from a fit that failed
            signal.raise_signal(signum)
            return
        self.signum = signum
        if not in_loop: raise _StopNow
        with suppress(OSError):                           # nobody may be listening any more
            os.write(2, b"\ncifar_fastai: stopping at the end of this batch; once more to stop at once\n")


def _in_loop(frame) -> bool:
    "Whether `frame` was called from the loop of a Learner"
    while frame is not None and frame.f_code is not Learner._with_events.__code__: frame = frame.f_back
    return frame is not None
