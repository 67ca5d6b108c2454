"""What a fit records, and what goes by it: fastai's Recorder on the device, and the best epoch's weights.

    learn.fit(20, cbs=KeepBest())          # afterwards the Learner has the weights of its best epoch
"""
import logging
from contextlib import suppress

import torch
from fastai.callback.core import Callback
from fastai.learner import AvgLoss, AvgMetric, AvgSmoothLoss, Recorder
from fastai.torch_core import find_bs

from ..errors import InputError, UnknownName
from .callbacks import epoch_row, fitting, metric_names

__all__ = ["DeviceRecorder", "KeepBest", "mean_metric", "refuse_test_set", "validated"]

log = logging.getLogger("cifar_fastai")


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
    def value(self):
        return torch.tensor(float("nan")) if self.val is None else self.val / (1 - self.beta ** self.count)


def mean_metric(metric):
    "A fastai metric that averages over pictures, made to do so on the device; others as they are"
    return _DeviceMetric(metric.func) if type(metric) is AvgMetric else metric


class DeviceRecorder(Recorder):
    """fastai's `Recorder`, without a synchronisation a batch: losses are fetched once an epoch. What a fit or
    a range test recorded stays until the next one; fastai's is emptied by `validate` and `get_preds`"""
    name, kept = "recorder", {}

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.loss, self.smooth_loss = _DeviceLoss(), _DeviceSmoothLoss(self.smooth_loss.beta)

    def before_fit(self):
        records = fitting(self.learn) or hasattr(self.learn, "lr_finder")
        self.kept = {} if records else {k: vars(self)[k] for k in self._stateattrs if k in vars(self)}
        super().before_fit()

    def after_fit(self): self.cleanup()

    def cleanup(self):
        "Put back what the last fit recorded, after a pass that only predicts"
        with suppress(RuntimeError): self.fetch()      # a device that failed gives nothing any more
        vars(self).update(self.kept)
        self.kept = {}

    def after_batch(self):
        "As fastai's, without its lists of metrics where only the loss is recorded"
        if not self.learn.training or self.train_metrics or not self.learn.yb:
            super().after_batch()
            return
        self.smooth_loss.accumulate(self.learn)
        self.learn.smooth_loss = self.smooth_loss.value
        self.losses.append(self.learn.smooth_loss)
        self.lrs.append(self.learn.opt.hypers[-1]["lr"])

    def after_train(self):
        self.fetch()
        super().after_train()

    def fetch(self):
        "Bring the losses recorded so far to the CPU"
        new = [k for k, v in enumerate(vars(self).get("losses", ())) if v.device.type != "cpu"]
        if not new: return
        fetched = torch.stack([self.losses[k] for k in new]).cpu()
        for k, v in zip(new, fetched): self.losses[k] = v


def refuse_test_set(
    learn,
    what: str,     # that wants to choose, as the user calls it
) -> None:
    "Raises: InputError where what validates is the test set, as `cifar_dataloaders` says"
    if getattr(learn.dls, "valid_name", None) == "test":
        raise InputError(f"{what} would choose by the test set. "
                         'Keep a holdout: valid="holdout" (--valid holdout).')


def check_metric(learn, name: str) -> None:
    "Raises: InputError where a Learner, whose fit has begun, has no such metric"
    if name not in (names := metric_names(learn.recorder)): raise UnknownName("metric", name, names)


def validated(
    learn,
    name: str,     # "valid_loss", "accuracy" …
) -> float | None:
    """The last epoch's value of a metric; None of an epoch, or a validation, that was passed over.
    Raises: InputError where it is not known or nothing was validated"""
    check_metric(learn, name)
    row, recorder = epoch_row(learn.recorder), learn.recorder
    nothing = not row and len(recorder.log) <= 1 + recorder.add_time
    if nothing or vars(recorder).get("cancel_valid"): return None
    if not row:
        raise InputError("a callback called validate, get_preds or tta before the epoch was recorded, which "
                         "empties fastai's record. Give it an order above 60, or use `cifar_learner`.")
    value = row.get(name)
    if value is None: raise InputError(f"no {name} was measured. Give the Learner validation pictures.")
    return float(value)


class KeepBest(Callback):
    """Keep the weights of the epoch with the best holdout accuracy, among equals of the lowest loss; in the
    end the net has them. Raises: InputError where the validation set is the test set."""
    order, remove_on_fetch = Recorder.order + 5, True
    best = best_epoch = weights = None

    def before_fit(self):
        self.run = fitting(self.learn)
        if not self.run: return
        refuse_test_set(self.learn, "keeping the best weights")
        check_metric(self.learn, "accuracy")
        self.best, self.best_epoch, self.weights = None, None, None

    def after_epoch(self):
        now = validated(self.learn, "accuracy"), validated(self.learn, "valid_loss")
        if None in now: return
        now = now[0], -now[1]
        if self.best is not None and now <= tuple(self.best): return
        self.best, self.best_epoch = now, self.epoch + 1
        self.weights = {k: v.detach().clone() for k, v in self.learn.model.state_dict().items()}

    def after_fit(self):
        "Put the best weights in, unless the fit ends in an error: then the last ones are to be looked at"
        if getattr(self.learn, "ending", None) is not None: return
        if self.weights is None: log.warning("kept nothing: no epoch was validated, the weights are the last")
        if self.weights is None: return
        self.learn.model.load_state_dict(self.weights)
        self.learn.epoch_of_best = self.best_epoch
        log.info("kept        the weights of epoch %d: holdout accuracy %.2f %%", self.best_epoch,
                 100 * self.best[0])

    def state_dict(self): return {"best": self.best, "epoch": self.best_epoch, "weights": self.weights}

    def load_state_dict(self, state):
        self.best, self.best_epoch, self.weights = state["best"], state["epoch"], state["weights"]
