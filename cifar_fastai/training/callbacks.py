"""Small fastai callbacks: epoch table, seeds per epoch. They work on a stock Learner too.

    learn.add_cbs([EpochSeed(0), EpochTable()])
"""
import inspect
import re
import sys
from contextlib import contextmanager

import numpy as np
import torch
from fastai.callback.core import Callback, TrainEvalCallback
from fastai.learner import Learner, Recorder
from fastcore.imports import IN_NOTEBOOK

from ..processes import rank
from .lr_finder import same_draws

__all__ = ["EpochSeed", "EpochTable", "epoch_row", "fitting", "inside_fit", "look", "loops"]

LOOPS = {inspect.unwrap(getattr(Learner, n)).__code__: n for n in ("fit", "tta")}
TIME = re.compile(r"(\d+:)?\d+:\d\d")     # what fastprogress's `format_time` writes
OF_A_LOOP = ("cbs", "dl", "epoch", "final_record", "iter", "loss", "loss_func", "loss_grad", "n_iter",
             "pct_train", "pred", "recorder", "smooth_loss", "train_iter", "training", "xb", "yb")


def loops(learn) -> list[str]:
    """Which of `fit` and `tta` of `learn` are at work in this thread, the innermost first. fastai keeps no
    note of them; the loops that only predict hold `learn.lock`"""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        if frame.f_code in LOOPS and frame.f_locals.get("self") is learn: found.append(LOOPS[frame.f_code])
        frame = frame.f_back
    return found


def fitting(learn) -> bool:
    """Whether the loop at hand trains for good: no `lr_find`, no `validate`, `get_preds` or `tta`, whether
    they are called by themselves or from a callback of a fit"""
    return loops(learn) == ["fit"] and not learn.lock.locked() and not hasattr(learn, "lr_finder")


def inside_fit(learn) -> bool:
    """Whether the loop that begins was called from a callback of a fit. Our callbacks then leave it out: by
    `run`, which fastai sets back after its `after_fit`"""
    at_work = loops(learn)
    return "fit" in at_work and (learn.lock.locked() or at_work[0] == "tta")


@contextmanager
def look(learn):
    """The context of a loop that only looks. Within a fit of our Learner, the fit's callbacks do no more in
    it than predictions need (`deaf` ones hear of no fit or epoch), and the fit then goes on as without it"""
    if "fit" not in loops(learn):
        yield
        return
    kept, of_learner = learn.cbs.filter(lambda cb: not getattr(cb, "remove_on_fetch", False)), vars(learn)
    states = [(o, dict(vars(o))) for o in (*kept, *learn.metrics)]
    modes = {m: m.training for m in learn.model.modules()}
    place, deaf = {k: v for k, v in of_learner.items() if k in OF_A_LOOP}, learn.deaf
    learn.cbs, learn.deaf, learn._listeners = kept, (*deaf, *kept), None
    mixing = getattr(learn.loss_func, "__self__", None)        # fastai's `MixUp`, in the middle of an epoch
    learn.loss_func = getattr(mixing, "old_lf", None) or learn.loss_func
    try:
        with same_draws(learn): yield
    finally:
        for k in OF_A_LOOP: of_learner.pop(k, None)
        of_learner.update(place, deaf=deaf, _listeners=None)
        for o, state in states:
            vars(o).clear()
            vars(o).update(state)
        for m, training in modes.items(): m.training = training


def metric_names(recorder) -> list[str]:
    "Of the losses, and of every metric that the Learner was asked for"
    return [n for n in recorder.metric_names[1:] if n != "time"]


def epoch_row(recorder) -> dict:
    """The epoch's losses and metrics by name, of what was not cut short; empty where a loop that was called
    within the epoch has emptied the Recorder, as on a stock Learner"""
    cut, of_training = vars(recorder), 1 + len(recorder.metrics) * bool(recorder.train_metrics)
    names = [n for k, n in enumerate(metric_names(recorder))
             if not cut.get("cancel_train" if k < of_training else "cancel_valid")]
    values = [v for v in recorder.log[1:] if not (isinstance(v, str) and TIME.fullmatch(v))]
    return dict(zip(names, values)) if len(values) == len(names) else {}


class EpochSeed(Callback):
    """Tell the loader which epoch comes, and seed torch's generator (dropout, mixup) from (seed, epoch,
    batch), so that an epoch does not depend on what ran before. A second fit counts on from the first."""
    order, state, counts = TrainEvalCallback.order + 1, None, False

    def __init__(self, seed: int = 0): self.seed, self.done = seed, 0

    def before_fit(self):
        self.run = not inside_fit(self.learn)
        if not self.run: return
        trains = "fit" in loops(self.learn)              # a pass that only predicts draws on and on
        self.state, self.counts = torch.random.get_rng_state() if trains else None, fitting(self.learn)
        self.on_cpu = all(p.device.type == "cpu" for p in self.model.parameters())

    def before_validate(self):
        "`tta` shows other views each time, and the same ones again when it is called again"
        if hasattr(self.dl, "set_epoch"): self.dl.set_epoch(self.learn.epoch)

    def before_train(self):
        self.first = getattr(self.dl, "skip", 0)
        if hasattr(self.dl, "set_epoch"): self.dl.set_epoch(self.done + self.epoch, self.first)
        self._draw_from(2**32 - 1)       # the order and the workers' seeds of a loader of torch

    def before_batch(self):
        if self.training: self._draw_from(self.first + self.iter)

    def _draw_from(self, batch: int):
        place = self.seed, self.done + self.epoch, batch
        seed = int(np.random.SeedSequence((*place, rank()) if rank() else place).generate_state(1)[0])
        # `torch.manual_seed` asks at each call for every kind of device that torch knows, 0.5 ms in all
        if self.on_cpu: torch.random.default_generator.manual_seed(seed)
        else: torch.manual_seed(seed)

    def after_fit(self):
        if self.counts: self.done += self.n_epoch
        self.cleanup()

    def cleanup(self):
        "Give the generator back as it was before the fit"
        if self.state is not None: torch.random.set_rng_state(self.state)
        self.state = None

    def state_dict(self): return {"done": self.done}
    def load_state_dict(self, state): self.done = state["done"]


class EpochTable(Callback):
    "One line an epoch: losses, metrics, highest rate, time; in a notebook fastai's own table stands there"
    order, remove_on_fetch = Recorder.order + 1, True

    def __init__(self, write=print): self.write = write

    def before_fit(self):
        free = self.learn.logger in (print, _quiet)   # `CSVLogger` gives back what it took, later than we do
        bars = IN_NOTEBOOK and not getattr(getattr(self.learn, "progress", None), "quiet", False)
        self.run = fitting(self.learn) and not bars and free
        if self.run: self.learn.logger = _quiet   # of the Recorder, whose row this is
        self.head_due = self.run

    def before_epoch(self):
        "The head above the first row: after what a resumed fit says of where it goes on"
        if self.head_due: self._write_row("epoch", lambda n: n.replace("_", " "), "rate", "time")
        self.head_due = False

    def after_epoch(self):
        rec = self.recorder
        row, time = epoch_row(rec), rec.log[-1] if rec.add_time else ""
        rate = f"{max(rec.lrs[-len(self.dls.train):], default=0):.2g}"
        self._write_row(f"{self.epoch + 1}/{self.n_epoch}", lambda n: _cell(n, row.get(n)), rate, time)

    def _write_row(self, epoch, cell, rate, time):     # `cell`: the name of a metric → its text
        width = lambda n: max(len(n), 10 if n.endswith("loss") else 8)
        cells = [f"{cell(n):>{width(n)}}" for n in metric_names(self.recorder)]
        self.write("  ".join([f"{epoch:>8}", *cells, f"{rate:>8}", f"{time:>6}"]))

    def after_fit(self): self.cleanup()

    def cleanup(self):
        "Give the logger back"
        if self.learn.logger is _quiet: self.learn.logger = print


def _cell(name: str, value) -> str:
    "A value of the table: shares in per cent, other numbers with four places"
    if value is None: return "-"
    if not isinstance(value, (int, float)): return str(value)
    return format(value, ".2%" if "accuracy" in name or name.endswith("error_rate") else ".4f")


def _quiet(*_): "In the place of `print`"
