"""The `Checkpoint` callback: resume a stopped or killed fit to the same bytes, on any fastai `Learner`.

    learn.fit_one_cycle(20, cbs=Checkpoint("run/checkpoints"))                  # killed …
    learn.fit_one_cycle(20, cbs=Checkpoint("run/checkpoints", resume=True))     # … resumed
"""
import logging
import time
from functools import partial
from itertools import islice
from pathlib import Path

from fastai.torch_core import rank_distrib
from fastcore.basics import noop
from torch.nn.utils import get_total_norm

from ..errors import InputError
from ..processes import agreed
from ..training import fitting
from .learner_state import (
    fit_fields,
    generators,
    learner_state,
    restore_generators,
    restore_learner,
    run_fields,
)
from .stop_on_nonfinite import NonFiniteLoss, StopFit, StopOnNonFinite, last_good, running_averages
from .stop_on_signal import StopOnSignal
from .store import CheckpointStore, differences

__all__ = ["Checkpoint"]

log = logging.getLogger("cifar_fastai")


class Checkpoint(StopFit):
    "Save at each epoch's end and every so many minutes; `resume` from there to the same end, byte for byte"
    order = 900                                           # after all that keeps state from batch to batch
    remove_on_fetch = True                                # predictions inside a fit are none of its batches

    def __init__(
        self,
        store: CheckpointStore | str | Path,  # or its folder
        fingerprint: dict | None = None,      # what else must agree to resume: seed … (JSON values by name)
        every_minutes: float | None = None,   # also within an epoch, at the edge of a batch
        share: float | None = None,           # of the time that saving may take; short epochs then share one
        resume: bool = False,                 # go on from the newest checkpoint that verifies, if any
    ):
        self.store = store if isinstance(store, CheckpointStore) else CheckpointStore(store)
        self.fields, self.wanted = fingerprint or {}, resume
        self.every_minutes, self.share = every_minutes, share
        self.fit_number, self.epochs_before, self.found, self.length = -1, 0, None, 0

    def before_fit(self):
        "Load what there is before the first fit; skip the fits and epochs that it has behind it"
        learn = self.learn
        self.run = fitting(learn)
        if not self.run: return
        self.cleanup()
        self.fit_number, self.epochs_before = self.fit_number + 1, self.epochs_before + self.length
        self.length, self.pending, self.trained, self.saved_at = learn.n_epoch, False, None, time.monotonic()
        self.cost = 0.                                    # seconds that the last save took
        self.run_fields, self.fit_fields = run_fields(learn) | self.fields, fit_fields(learn)
        self.at_epoch = generators(learn)
        try:
            if self.fit_number == 0: self.found = agreed(self._newest)
            if self.found and self.found["fit"] >= self.fit_number: self._go_on(self.found)
        except InputError as error: self.end(error)

    def _newest(self) -> dict | None:
        "The state to go on from, which the first of several processes reads"
        if self.wanted: return self.store.load_newest(self.run_fields)
        if not (path := self.store.newest()): return None
        raise InputError(f"{self.store.folder} already holds a run's checkpoints, the last {path.name}. "
                         "Ask to resume it, or give another folder.")

    def _go_on(self, state: dict):
        "Enter the loop where `state` left it"
        if state["fit"] > self.fit_number: start = self.learn.n_epoch            # this fit is over
        else:
            if found := differences(state["fit fields"], self.fit_fields):
                raise InputError(f"cannot resume from {self.store.newest()}: {found}. "
                                 "Use what the run was started with, or start a new one in another folder.")
            start = state["epoch"]
            restore_learner(self.learn, state)
            self.at_epoch = state["epoch generators"]
            log.info(f"going on at epoch {start} of {self.learn.n_epoch}, batch {state['batch']}")
        self.learn._with_events = partial(self._pass_over, self.learn, state, start)

    def _pass_over(self, learn, state, start, f, event_type, ex, final=noop):
        """Stands in for `Learner._with_events` until the first batch. fastai's own `start_epoch` fires the
        events of the epochs it skips, which breaks `Recorder`, `CSVLogger` and `SaveModelCallback`"""
        if self.learn is learn and event_type == "epoch":
            if learn.epoch < start: return
            self._draw_as(state["epoch generators"])
        if self.learn is not learn or event_type == "train":
            del learn._with_events
            if self.learn is learn and state["batch"]: f = partial(self._rest_of_epoch, state)
        type(learn)._with_events(learn, f, event_type, ex, final)

    def _rest_of_epoch(self, state: dict):
        "`Learner.all_batches` without the batches that were trained before the stop"
        learn = self.learn
        learn.n_iter = len(learn.dl)
        if hasattr(learn.dl, "skip"):
            learn.dl.set_epoch(learn.dl.epoch, state["batch"])
            batches = enumerate(learn.dl, state["batch"])
        else:
            batches = enumerate(learn.dl)
            next(islice(batches, state["batch"] - 1, state["batch"]), None)
        restore_learner(learn, state)
        restore_generators(learn, state["generators"])
        for batch in batches: learn.one_batch(*batch)

    def after_cancel_batch(self): self.pending = self.pending or self.learn.training
    def after_step(self): self.pending = False
    def after_train(self): self.trained = generators(self.learn)
    def after_validate(self): self.trained = None

    def after_batch(self):
        "Within an epoch: when the time has come, or the run is about to stop"
        stopping = any(cb.due for cb in self.learn.cbs if isinstance(cb, StopOnSignal))
        if self.learn.training:
            waited = time.monotonic() - self.saved_at
            due = self.every_minutes is not None and waited >= 60 * self.every_minutes
            if due or stopping: self._save(self.learn.epoch, self.learn.iter + 1, generators(self.learn))
        elif stopping and self.trained: self._save(self.learn.epoch, len(self.learn.dls.train), self.trained)

    def after_epoch(self):
        self.at_epoch = generators(self.learn)
        last = self.learn.epoch == self.learn.n_epoch - 1
        if not last and self.share and self.cost > self.share * (time.monotonic() - self.saved_at): return
        self._save(self.learn.epoch + 1, 0, self.at_epoch)

    def after_fit(self):
        self.cleanup()
        ended = self.found and (self.found["fit"], self.found["epoch"]) == (self.fit_number, self.length)
        if ended: self._draw_as(self.found["epoch generators"])      # what comes after goes on from there
        super().after_fit()

    def _draw_as(self, then: dict) -> None:
        "Put generators and the loader's epoch where they were"
        restore_generators(self.learn, then)
        if then.get("epoch") is not None: self.learn.dls.train.set_epoch(then["epoch"])

    def cleanup(self): self.learn.__dict__.pop("_with_events", None)

    def _save(self, epoch: int, batch: int, now: dict):
        "Write a checkpoint of here, unless the weights are no numbers: two good ones are worth more"
        if rank_distrib(): return                         # the first process has all that is to be kept
        learn, begun = self.learn, time.monotonic()
        for cb in learn.cbs:
            if isinstance(cb, StopOnNonFinite): cb.settle()
        state = learner_state(learn, self.pending) | {
            "fit": self.fit_number, "epoch": epoch, "batch": batch, "fit fields": self.fit_fields,
            "generators": now, "epoch generators": self.at_epoch}
        weights = [p.detach() for p in learn.model.parameters()]
        if not get_total_norm(weights + running_averages(learn.model)).isfinite():
            self.end(NonFiniteLoss(f"weights are not finite after epoch {epoch}, batch {batch}: not saved. "
                                   f"{last_good(learn)} Lower the learning rate."))
        try: self.store.save(state, self.epochs_before + epoch, batch, self.run_fields)
        except InputError as error: self.end(error)
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - begun
