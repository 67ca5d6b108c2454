"""Callbacks that stop a fit while nothing is lost, on any fastai `Learner`.

    with StopOnSignal() as stop:
        learn.fit_one_cycle(20, cbs=[StopOnNonFinite(), stop])

They end a fit by `CancelFitException`, so that every callback's `after_fit` closes its files and takes out
its hooks, and raise their error after that.
"""
import os
import signal
import threading

import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner
from torch.nn.utils import get_total_norm

from .checkpoint import CheckpointStore
from .errors import InputError

__all__ = ["NonFiniteLoss", "Stopped", "Ender", "StopOnNonFinite", "StopOnSignal", "last_good"]

LONGEST_STEP = 1e30                                       # of a weight; float32 ends at 3.4e38


class NonFiniteLoss(InputError):
    "The loss, a gradient or a weight is no number any more"
    exit_status = 1


class Stopped(InputError):
    "The run was asked to stop: `exit_status` is 143 after SIGTERM, 130 after Ctrl-C"
    def __init__(self, message: str = "", signum: int = signal.SIGINT):
        super().__init__(message)
        self.exit_status = 128 + signum


class Ender(Callback):
    "Ends a fit in order: all callbacks' `after_fit` first, then the error"

    def end(self, error: InputError):
        self.learn.ending = error
        raise CancelFitException

    def after_fit(self):
        error = getattr(self.learn, "ending", None)
        last = [cb for cb in self.learn.cbs.sorted("order") if isinstance(cb, Ender)][-1]
        if error is None or self is not last: return
        del self.learn.ending
        raise error


def last_good(learn) -> str:
    "Where the last checkpoint lies, as a sentence"
    stores = [store for cb in learn.cbs if isinstance(store := vars(cb).get("store"), CheckpointStore)]
    path = stores[0].newest() if stores else None
    return f"Last good checkpoint: {path}." if path else "There is no checkpoint yet."


class StopOnNonFinite(Ender):
    "Refuse the step while the weights are still good: loss and gradients are looked at once, just before it"
    order, run_valid = 1000, False                        # after unscaling and clipping

    def before_fit(self):
        self.averages = list(self.learn.model.buffers())  # a forward pass alone spoils these
        self.averages_before = [b.clone() for b in self.averages]

    def before_batch(self):
        if self.averages: torch._foreach_copy_(self.averages_before, self.averages)

    def before_step(self):
        grads = [p.grad for group in self.opt.param_lists for p in group if p.grad is not None]
        longest = get_total_norm(grads, float("inf")).float() if grads else torch.tensor(0.)
        found = torch.stack([self.learn.loss.detach().as_subclass(torch.Tensor).float(), longest])
        self._judge(*found.tolist())                      # the only wait for the device

    def after_cancel_step(self): self._judge(float(self.learn.loss), 0.)   # fp16: the scaler skips by itself

    def _judge(self, loss: float, grad: float):
        "End the fit unless this step leaves all weights finite"
        lr = max(h["lr"] for h in self.opt.hypers)
        wd = max(h.get("wd", 0.) for h in self.opt.hypers)
        if not abs(loss) < float("inf"): self._refuse(f"the loss is {loss}")
        if not grad < float("inf"): self._refuse(f"the largest gradient is {grad}")
        if not lr*max(1., grad) < LONGEST_STEP: self._refuse(f"a learning rate of {lr:g} leaves float32")
        if not lr*wd <= 2: self._refuse(f"a weight decay of {wd:g} times a learning rate of {lr:g} is over 2")

    def _refuse(self, reason: str):
        if self.averages: torch._foreach_copy_(self.averages, self.averages_before)
        self.opt.zero_grad()
        learn = self.learn
        if hasattr(learn, "lr_finder") and learn.train_iter: raise CancelFitException   # it has found its end
        self.end(NonFiniteLoss(
            f"{reason} at epoch {learn.epoch}, batch {learn.iter}: stopped before the step, the weights are "
            f"those of the batch before. {last_good(learn)} Lower the learning rate or look at that batch."))

    def after_fit(self):
        self.averages = self.averages_before = None
        super().after_fit()


class StopOnSignal(Ender):
    """SIGTERM or Ctrl-C stops at the next batch's edge, after a checkpoint; the second at once.
    As a callback it listens during a fit, as `with StopOnSignal() as stop:` in the whole block: `check`"""
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
        if self.signum and (error is None or isinstance(error, RuntimeError)):   # of a dead worker
            raise self._stopped() from error

    def check(self):
        "Between two parts of a run: stop here if a signal has come. Raises: Stopped"
        if self.signum: raise self._stopped()

    def before_fit(self):
        if self.in_block and self.signum: self.end(self._stopped())
        if self.in_block: return
        self.signum = None
        self._install()

    def after_batch(self):
        if self.signum: self.end(self._stopped(f" at epoch {self.learn.epoch}, batch {self.learn.iter}. "
                                               + last_good(self.learn)))

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
        if not (self.in_block or _in_loop(frame)):        # left over from a fit that failed
            signal.raise_signal(signum)
            return
        self.signum = signum
        os.write(2, b"\ncifar_fastai: stopping at the end of this batch; once more to stop at once\n")


def _in_loop(frame) -> bool:
    "Whether `frame` was called from the loop of a Learner"
    while frame is not None and frame.f_code is not Learner._with_events.__code__: frame = frame.f_back
    return frame is not None
