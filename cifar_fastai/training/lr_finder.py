"""The learning-rate range test (Smith 2017): raise the rate batch by batch, watch the loss, suggest a rate.
It leaves no trace.

    rates = learn.lr_find(n_epoch=20, suggest_funcs=(valley, slide, minimum, steep, peak))
    learn.fit_one_cycle(20, rates.peak)
"""
import logging
import random
from collections import namedtuple
from contextlib import contextmanager
from copy import deepcopy
from functools import partial

import numpy as np
import torch
from fastai.callback.core import CancelFitException
from fastai.callback.schedule import LRFinder, SchedExp, SchedLin, minimum, slide, steep, valley
from fastcore.basics import listify

from ..errors import InputError, UnknownName
from ..parts import LRFind, OneCycle
from .optimizers import batches_a_step

__all__ = ["LRSweep", "explain_rate", "fallback_rate", "find_rate", "loss_fell", "minimum", "peak",
           "peak_factor", "plausible_rate", "same_draws", "slide", "steep", "valley"]

log = logging.getLogger("cifar_fastai")


def peak(
    lrs: torch.Tensor,      # rates in the order they were tried
    losses: torch.Tensor,   # smoothed, one a rate
    num_it: int = 0,        # as fastai's suggestions take it
    factor: float = 1.0,    # of the rate where the loss is lowest
) -> tuple:                 # the rate, and the point of the curve
    """A peak for the one-cycle of SGD or Muon: the rate where the loss is lowest, or so many times it. A net
    that was warmed up takes a higher rate than one that meets each rate for a single batch: `peak_factor`
    gives how much by the length of the warm-up, for `lr_find(n_epoch=…)` and recipes. Adam wants an eighth
    of that, a constant rate fastai's `minimum`, a tenth of the rate with the lowest loss. The bottom is
    sought before the loss stands 5 % above its beginning (nets with batch norm come back from there, but not
    by learning), the peak before it stands 50 % above"""
    begin = losses[:max(1, len(losses) // 5)].max()                                # they are noisy at first
    bottom = lrs[losses[:_first_above(losses, 1.05 * begin)].argmin()]
    k = int((lrs[:_first_above(losses, 1.5 * begin)] - factor * bottom).abs().argmin())
    return float(lrs[k]), (float(lrs[k]), losses[k])


def _first_above(losses, bound) -> int:
    above = (losses > bound).nonzero()
    return int(above[0]) if len(above) else len(losses)


SUGGESTIONS = (valley, slide, minimum, steep, peak)
SLIDE_NEEDS = 17                                          # rates; the others need two


class LRSweep(LRFinder):
    "Raise the rate at each batch, record the loss of the training batch, or of a held-out one after the step"
    name, remove_on_fetch = "lr_finder", True

    def __init__(self, start_lr, end_lr, num_it, mode, on, stop_div):
        super().__init__(start_lr, end_lr, num_it, stop_div)
        self.scheds, self.on = {"lr": {"exp": SchedExp, "linear": SchedLin}[mode](start_lr, end_lr)}, on

    def before_fit(self):
        self.hps, self.best_loss, self.plain_loss = {"lr": []}, float("inf"), self.learn.loss_func
        if self.on == "holdout": self.held, self.held_losses = self.dls.valid.one_batch(), []

    def after_batch(self):
        for p in self.scheds: self.hps[p].append(self.opt.hypers[-1][p])
        if self.on == "holdout": self._judge_held_out()
        loss = float(self.smooth_loss)
        self.best_loss = min(self.best_loss, loss)
        over = self.stop_div and not loss <= 4 * self.best_loss
        if over or self.train_iter >= self.num_it: raise CancelFitException

    def _judge_held_out(self):
        x, y = (t.as_subclass(torch.Tensor) for t in self.held)
        self.model.eval()
        with torch.no_grad(): loss = self.plain_loss(self.model(x), y).detach()
        self.model.train()
        self.held_losses.append(loss if not self.held_losses else torch.lerp(loss, self.held_losses[-1], 0.9))
        self.recorder.losses[-1] = self.learn.smooth_loss = self.held_losses[-1].cpu()

    def after_fit(self): self.learn.opt.zero_grad()


def peak_factor(
    steps: float,    # in which the rate rises, until its peak
    opt_func=None,   # of the Learner; None: SGD
) -> float:
    """How many times the rate with the lowest loss a one-cycle can have as its peak: once for every 40 steps
    of warm-up, but from a half to four times, or to the `highest_peak` of the torch optimiser. Chosen on a
    holdout: docs/predecessors.md"""
    kind = getattr(opt_func, "keywords", {}).get("opt")
    return max(0.5, min(getattr(kind, "highest_peak", 4.0), steps / 40))


def find_rate(
    learn,
    start_lr: float = LRFind.start_lr,
    end_lr: float = LRFind.end_lr,
    num_it: int = LRFind.num_it,  # batches, each with a higher rate
    mode: str = LRFind.mode,      # "exp": by a factor, "linear": by a step
    on: str = LRFind.on,          # whose loss: "train" (smoothed) or "holdout" (one batch), no test set
    stop_div: bool = True,   # stop where the loss is above four times its minimum
    show_plot: bool = True,
    suggest_funcs=None,      # None: valley; `peak`, fastai's `slide`, `minimum`, `steep`, or like them
    n_epoch: int | None = None,   # length of the fit that the rate is for, see below
    warm_up: float | None = None,  # epochs until the peak of that fit; None: as `fit_one_cycle` has it
):                           # namedtuple of rates by function; losses and rates stay in `learn.recorder`
    """Try rates from `start_lr` to `end_lr`; model, optimiser, generators and disk are afterwards as before.
    With `n_epoch` the suggestion `peak` goes by the warm-up of that fit, and no more batches are tried than
    it has (at least 60). Raises: InputError for rates that do not rise, or too few batches to judge by."""
    _check_range(learn, start_lr, end_lr, mode, on)
    funcs, factor = listify(valley if suggest_funcs is None else suggest_funcs), 1.0
    if n_epoch is not None:
        steps = len(learn.dls.train) / batches_a_step(learn)
        num_it = min(num_it, max(60, n_epoch * len(learn.dls.train)))
        warm_up = OneCycle().warm_up(n_epoch) if warm_up is None else warm_up
        factor = peak_factor(warm_up * steps, learn.opt_func)
    sweep = LRSweep(start_lr, end_lr, num_it, mode, on, stop_div)
    with _untouched(learn), learn.no_logging():
        learn.fit(num_it // max(1, len(learn.dls.train)) + 1, cbs=sweep)
    lrs, losses = _judged(learn.recorder, num_it, SLIDE_NEEDS if slide in funcs else 2)
    learn.recorder.loss_fell, learn.recorder.peak_factor = loss_fell(losses), factor
    if not learn.recorder.loss_fell:
        log.warning("rate        the loss did not fall in the range test: its suggestions say nothing")
    funcs = [partial(f, factor=factor) if f is peak else f for f in funcs]
    rates = {getattr(f, "func", f).__name__: f(lrs, losses, num_it)[0] for f in funcs}
    if show_plot:
        from ..plots import plot_lr_find
        plot_lr_find(learn.recorder.lrs, [float(v) for v in learn.recorder.losses], rates, mode=mode, on=on)
    return namedtuple("SuggestedLRs", rates)(**rates)


def _check_range(learn, start_lr: float, end_lr: float, mode: str, on: str) -> None:
    if mode not in ("exp", "linear"): raise UnknownName("mode of the range test", mode, ["exp", "linear"])
    if on not in ("train", "holdout"): raise UnknownName("loss of the range test", on, ["train", "holdout"])
    if on == "holdout" and getattr(learn.dls, "valid_name", None) == "test":
        raise InputError("the range test was asked to judge by the validation set, which is the test set "
                         'here. Keep a holdout (valid="holdout"), or judge by on="train".')
    if not (start_lr > 0 if mode == "exp" else start_lr >= 0):
        raise InputError(f"the range test cannot start at {start_lr:g}. Give a rate above 0, such as 1e-5"
                         f"{', or start at 0 with mode=' + repr('linear') if start_lr == 0 else ''}.")
    if not start_lr < end_lr < float("inf"):
        raise InputError(f"the range test cannot rise from start_lr={start_lr:g} to end_lr={end_lr:g}. "
                         "Give an end_lr above start_lr.")


def _judged(recorder, num_it: int, least: int):
    "Rates and losses without the first tenth, the last five, and what follows a loss that is not finite"
    losses = torch.stack([torch.as_tensor(v, dtype=torch.float32).cpu() for v in recorder.losses])
    good = int(losses.isfinite().int().cumprod(0).sum())      # until the first that is not finite
    judged = slice(num_it // 10, max(0, min(len(losses) - 5, good)))
    lrs = torch.tensor(recorder.lrs[judged])
    recorder.lrs, recorder.losses, losses = recorder.lrs[:good], list(losses[:good]), losses[judged]
    if len(losses) < least:
        raise InputError(f"the range test has only {len(losses)} rates to judge by, of which {least} are "
                         f"needed{' by slide' if least == SLIDE_NEEDS else ''}. Raise num_it, or lower "
                         "start_lr.")
    return lrs, losses


@contextmanager
def _untouched(learn):
    "Model, optimiser, generators, loaders and training flags are as before, also if the inside fails"
    model, had_opt = learn.model, learn.opt is not None
    flags, grads = {m: m.training for m in model.modules()}, [p.grad for p in model.parameters()]
    weights, opt = deepcopy(model.state_dict()), deepcopy(learn.opt.state_dict()) if had_opt else None
    states = [(cb, cb.state_dict()) for cb in learn.cbs if hasattr(type(cb), "load_state_dict")]
    for p in model.parameters(): p.grad = None
    try:
        with same_draws(learn): yield
    finally:
        model.load_state_dict(weights)
        for m, training in flags.items(): m.training = training
        for p, grad in zip(model.parameters(), grads): p.grad = grad
        if had_opt: learn.opt.load_state_dict(opt)
        else: learn.opt = None
        for cb, state in states: cb.load_state_dict(state)


@contextmanager
def same_draws(learn):
    "Generators and loaders stand afterwards where they stood before, also if the inside fails"
    loaders = [(dl, _place(dl)) for dl in learn.dls.loaders]
    python, numpy = random.getstate(), np.random.get_state()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(gpus): yield
    finally:
        for dl, place in loaders: _go_to(dl, place)
        random.setstate(python)
        np.random.set_state(numpy)


def _place(dl):
    "Where a loader stands: ours in its epochs, fastai's in its generator"
    if hasattr(dl, "set_epoch"): return dl.epoch, dl.skip
    return dl.rng.getstate() if isinstance(getattr(dl, "rng", None), random.Random) else None


def _go_to(dl, place):
    if hasattr(dl, "set_epoch"): dl.set_epoch(*place)
    elif place is not None: dl.rng.setstate(place)


def loss_fell(
    losses: torch.Tensor,   # smoothed, one a rate, in the order they were tried
) -> bool:
    """Whether the loss fell from the mean of the first fifth, which is noisy, before it stands 5 % above the
    highest there, as `peak` reads it: by 5 %, or by 1 % that is five times the noise"""
    first = losses[:max(1, len(losses) // 5)]
    later = losses[len(first):_first_above(losses, 1.05 * first.max())]
    drop, noise = 1 - later / first.mean(), first.std(correction=0) / first.mean()
    return bool(((drop > .05) | (drop > .01) & (drop > 5 * noise)).any())


def fallback_rate(opt: str) -> float:
    "A rate for an optimiser of which nothing is known: the usual default, 0.01 for SGD, 0.001 for others"
    return 1e-2 if opt in ("sgd", "asgd") else 1e-3


def plausible_rate(
    rates,             # the namedtuple of `find_rate`
    rule: str,         # the field to take
    lowest: float,     # the first rate that was tried
) -> float:
    """The suggestion of `rule`, if it does not lie among the first rates tried: the loss has not moved there
    yet, so its minimum is noise, and a net does not learn with it. Else the median of those that do not"""
    rate = getattr(rates, rule)
    if rate >= 10 * lowest: return rate
    other = float(np.median([r for r in rates if r >= 10 * lowest] or rates))
    log.warning("rate        %s gives %.2g, where the loss has hardly moved yet: the median of the other "
                "suggestions, %.2g, is taken", rule, rate, other)
    return other


def explain_rate(
    rates,                 # the namedtuple of `find_rate`
    rule: str,             # the field that was asked for
    taken: float,          # what `plausible_rate` or `fallback_rate` gives
    fell: bool = True,     # whether the loss did
) -> str:
    "One line for the log: every suggestion, and which one is taken"
    others = ", ".join(f"{n} {getattr(rates, n):.2g}" for n in rates._fields)
    name = rule if taken == getattr(rates, rule) else f"median, not {rule}"
    if not fell: name = f"a careful default, not {rule}: the loss did not fall"
    return f"{taken:.3g} ({name}) of {others}"
