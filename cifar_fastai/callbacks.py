"""Small fastai callbacks, each the size of its idea. Every one works on a stock Learner too.

    learn.fit_one_cycle(5, 0.1, cbs=[Precision("bf16"), GradCAMCallback("layer3")])
"""
import sys

import torch
from fastai.callback.core import Callback, TrainEvalCallback
from fastai.callback.progress import ProgressCallback
from fastai.learner import AvgLoss, AvgMetric, AvgSmoothLoss, Recorder
from fastai.torch_core import find_bs
from fastcore.imports import IN_NOTEBOOK
from fastprogress.fastprogress import ConsoleProgressBar

from .precision import Precision

__all__ = ["DeviceRecorder", "EpochSeed", "EpochTable", "L1Loss", "WatchProgress", "mean_metric"]

class EpochSeed(Callback):
    """Tell the loader which epoch comes, and seed torch's generator (dropout, mixup) from (seed, epoch, batch), so that an epoch does
    not depend on what ran before it. A second fit goes on counting where the first one ended."""
    order = TrainEvalCallback.order + 1

    def __init__(self, seed: int = 0): self.seed, self.done = seed, 0

    def before_fit(self):
        self.state, self.fitting = torch.random.get_rng_state(), not hasattr(self.learn, "gather_preds")

    def before_train(self):
        self.first = getattr(self.dl, "skip", 0)
        if hasattr(self.dl, "set_epoch"): self.dl.set_epoch(self.done + self.epoch, self.first)

    def before_batch(self):
        if self.training: torch.manual_seed(hash((self.seed, self.done + self.epoch, self.first + self.iter)))

    def after_fit(self):
        if self.fitting and hasattr(self, "n_epoch"): self.done += self.n_epoch
        self.cleanup()

    def cleanup(self):
        "Give the generator back as it was before the fit"
        if getattr(self, "state", None) is not None: torch.random.set_rng_state(self.state)
        self.state = None

    def state_dict(self): return {"done": self.done}
    def load_state_dict(self, state): self.done = state["done"]


class L1Loss(Callback):
    "Add `factor` × Σ|w| of the weights (not of norms and biases) to the training loss, L1 regularisation (Tibshirani 1996)"
    order = Precision.order - 1   # before autocast ends, so inside the loss

    def __init__(self, factor: float): self.factor = factor

    def after_loss(self):
        if not self.training: return
        weights = [p for p in self.model.parameters() if p.ndim > 1 and p.requires_grad]
        self.learn.loss_grad = self.loss_grad + self.factor * sum(w.float().abs().sum() for w in weights)


class _DeviceMean:
    "A mean over pictures that stays on the device until it is read: no synchronisation a batch"
    def reset(self): self.total, self.count = 0.0, 0

    def accumulate(self, learn):
        bs = find_bs(learn.yb)
        self.total = self.total + self.of_batch(learn).detach() * bs
        self.count += bs

    @property
    def value(self): return self.total / self.count if self.count else None


class _DeviceMetric(_DeviceMean, AvgMetric):
    def of_batch(self, learn): return torch.as_tensor(self.func(learn.pred, *learn.yb))


class _DeviceLoss(_DeviceMean, AvgLoss):
    def of_batch(self, learn): return learn.loss.mean()


class _DeviceSmoothLoss(AvgSmoothLoss):
    def reset(self): self.count, self.val = 0, None

    def accumulate(self, learn):
        self.count += 1
        loss = learn.loss.detach().mean().as_subclass(torch.Tensor)
        self.val = torch.lerp(loss, torch.zeros_like(loss) if self.val is None else self.val, self.beta)

    @property
    def value(self): return self.val / (1 - self.beta ** self.count)


def mean_metric(metric):
    "A fastai metric that averages over pictures, made to do so on the device; others as they are"
    return _DeviceMetric(metric.func) if type(metric) is AvgMetric else metric


class DeviceRecorder(Recorder):
    "fastai's `Recorder`, without a synchronisation a batch: losses are fetched once an epoch"
    name = "recorder"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.loss, self.smooth_loss = _DeviceLoss(), _DeviceSmoothLoss(self.smooth_loss.beta)

    def after_train(self):
        self.fetch()
        super().after_train()

    def fetch(self):
        "Bring the losses recorded so far to the CPU"
        new = [k for k, v in enumerate(self.losses) if v.device.type != "cpu"]
        for k, v in zip(new, torch.stack([self.losses[k] for k in new]).cpu() if new else ()): self.losses[k] = v


class EpochTable(Callback):
    "One line an epoch: losses, accuracy, rate and time, through `write` (in a notebook fastai's own table stands there instead)"
    order, remove_on_fetch = DeviceRecorder.order + 1, True

    def __init__(self, write=print): self.write = write

    def before_fit(self):
        self.run = not hasattr(self.learn, "lr_finder") and not hasattr(self.learn, "gather_preds") and not IN_NOTEBOOK
        if self.run: self.write(f"{'epoch':>8}  {'train loss':>10}  {'valid loss':>10}  {'accuracy':>8}  {'rate':>8}  {'time':>6}")

    def after_epoch(self):
        rec = self.recorder
        row = dict(zip(rec.metric_names[1:-1], rec.log[1:-1]))
        cell = lambda key, form: format(row[key], form) if row.get(key) is not None else "-"  # noqa: E731
        self.write(f"{f'{self.epoch + 1}/{self.n_epoch}':>8}  {cell('train_loss', '.4f'):>10}  {cell('valid_loss', '.4f'):>10}  "
                   f"{cell('accuracy', '.2%'):>8}  {rec.lrs[-1] if rec.lrs else 0:>8.2g}  {rec.log[-1]:>6}")


class WatchProgress(ProgressCallback):
    "fastai's bars in a notebook; one live bar at a terminal; none where the output is piped. The loss is only read when it is shown"
    name = "progress"

    def before_fit(self):
        self.live = self.create_mbar and (IN_NOTEBOOK or sys.stdout.isatty())
        if IN_NOTEBOOK: super().before_fit()
        elif self.learn.logger is print: self.learn.logger = _quiet

    def _launch_pbar(self):
        if IN_NOTEBOOK: return super()._launch_pbar()
        self.pbar = ConsoleProgressBar(range(len(self.dl)), leave=False) if self.live else None
        if self.live: self.pbar.update(0)

    def after_batch(self):
        if self.pbar is None: return
        done, bar = self.iter + 1, self.pbar
        due = done <= bar.first_its or bar.last_v is None or done >= bar.last_v + getattr(bar, "wait_for", 1)
        if due and self.training and hasattr(self, "smooth_loss"): bar.comment = f"{self.smooth_loss.item():.4f}"
        bar.update(done)

    def after_train(self): self._end_bar()
    def after_validate(self): self._end_bar()

    def _end_bar(self):
        if getattr(self, "pbar", None) is not None: self.pbar.on_iter_end()
        self.pbar = None

    def after_fit(self):
        super().after_fit()
        if self.learn.logger is _quiet: self.learn.logger = print


def _quiet(*_): "Where the epoch table already says it"
