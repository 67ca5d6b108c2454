"""fastai's Recorder with losses and metrics kept on the device: no synchronisation per batch on a GPU."""
import torch
from fastai.learner import AvgLoss, AvgMetric, AvgSmoothLoss, Recorder
from fastai.torch_core import find_bs

from .callbacks import fitting

__all__ = ["DeviceRecorder", "mean_metric"]


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
        new = [k for k, v in enumerate(self.losses) if v.device.type != "cpu"]
        if not new: return
        fetched = torch.stack([self.losses[k] for k in new]).cpu()
        for k, v in zip(new, fetched): self.losses[k] = v
