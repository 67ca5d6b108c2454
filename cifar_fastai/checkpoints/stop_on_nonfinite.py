"""Stop a fit before a step that would make weights NaN or infinite, on any fastai `Learner`.

    with StopOnSignal() as stop:
        learn.fit_one_cycle(20, cbs=[StopOnNonFinite(), stop])

They end a fit by `CancelFitException`, so that every callback's `after_fit` closes its files and takes out
its hooks, and raise their error after that.
"""
import torch
from fastai.callback.core import Callback, CancelFitException
from torch import nn
from torch.nn.utils import get_total_norm

from ..errors import InputError
from ..training import inside_fit
from .store import CheckpointStore

__all__ = ["StopFit", "NonFiniteLoss", "StopOnNonFinite", "last_good", "running_averages"]

LONGEST_STEP = 1e30                                       # of a weight; float32 ends at 3.4e38


class NonFiniteLoss(InputError):
    "The loss, a gradient or a weight is no number any more"
    exit_status = 1


class StopFit(Callback):
    "Ends a fit in order: all callbacks' `after_fit` first, then the error"

    def end(self, error: InputError):
        self.learn.ending = error
        raise CancelFitException

    def after_fit(self):
        error = getattr(self.learn, "ending", None)
        last = [cb for cb in self.learn.cbs.sorted("order") if isinstance(cb, StopFit)][-1]
        if error is None or self is not last: return
        del self.learn.ending
        raise error


def last_good(learn) -> str:
    "Where the last checkpoint lies, as a sentence"
    stores = [store for cb in learn.cbs if isinstance(store := vars(cb).get("store"), CheckpointStore)]
    path = stores[0].newest() if stores else None
    return f"Last good checkpoint: {path}." if path else "There is no checkpoint yet."


class StopOnNonFinite(StopFit):
    """Refuse the step while the weights are still good: loss and gradients are looked at just before it.
    A GPU would have to be waited for: there the answer is read a batch later, and that step taken back"""
    order, run_valid = 1000, False                        # after unscaling and clipping

    def __init__(
        self,
        late: bool | None = None,  # read the answer a batch later (copies the weights); None: on a GPU
    ): self.late = late

    def before_fit(self):
        self.run = not inside_fit(self.learn)
        if not self.run: return
        model = self.learn.model
        late = self.late if self.late is not None else next(model.parameters()).device.type != "cpu"
        self.moving = [p.detach() for p in model.parameters()] if late else []
        self.averages = list(model.buffers())             # a forward pass alone spoils these
        self.watched = running_averages(model)
        self.averages_before = [t.clone() for t in self.averages]
        self.kept = [t.clone() for t in self.moving + self.averages]
        self.asked, self.pending = None, False            # `pending`: gradients wait for a later step

    def before_batch(self):
        if not self.pending: _copy(self.averages_before, self.averages)

    def after_cancel_batch(self): self.pending = True
    def after_train(self): self.settle()

    def before_step(self):
        self.pending = False
        grads = [p.grad for group in self.opt.param_lists for p in group if p.grad is not None]
        norm = get_total_norm([*grads, *self.watched]).float()
        answer = torch.stack([self.learn.loss.detach().as_subclass(torch.Tensor).float(), norm])
        where = max(h["lr"] for h in self.opt.hypers), self.learn.epoch, self.learn.iter
        self.settle()
        _copy(self.kept, self.moving + self.averages_before)
        self.asked = answer.to("cpu", non_blocking=True), _event(answer.device), where
        if not self.moving: self.settle()

    def after_cancel_step(self):                          # fp16, where the scaler skips steps by itself
        self.pending = False
        self._judge(float(self.learn.loss), 0., 0., self.learn.epoch, self.learn.iter)

    def settle(self):
        "Read the answer that is still open. Ends the fit where it is bad"
        if self.asked is None: return
        (answer, event, where), self.asked = self.asked, None
        if event is not None: event.synchronize()
        self._judge(*answer.tolist(), *where)

    def _judge(self, loss: float, norm: float, lr: float, epoch: int, batch: int):
        "End the fit unless this step leaves all weights finite"
        decay = lr * max(h.get("wd", 0.) for h in self.opt.hypers)
        if not abs(loss) < float("inf"): reason = f"the loss is {loss}"
        elif not norm < float("inf"): reason = f"gradients and running averages have a norm of {norm}"
        elif not lr * max(1., norm) < LONGEST_STEP: reason = f"a learning rate of {lr:g} leaves float32"
        elif not decay <= 2: reason = f"learning rate {lr:g} times weight decay is {decay:g}, above 2"
        else: return
        self._take_back()
        if hasattr(self.learn, "lr_finder") and self.learn.train_iter: raise CancelFitException   # its end
        self.end(NonFiniteLoss(
            f"{reason} at epoch {epoch}, batch {batch}: stopped before the step, weights as they were. "
            f"{last_good(self.learn)} Lower the learning rate or look at that batch."))

    def _take_back(self):
        "Weights and running means as they were before the bad batch; spoiled momenta are forgotten"
        _copy(self.moving + self.averages, self.kept)
        if self.moving: self.opt.clear_state()
        self.opt.zero_grad()

    def after_fit(self):
        self.moving = self.averages = self.watched = self.averages_before = self.kept = self.asked = None
        super().after_fit()


def running_averages(model) -> list[torch.Tensor]:
    "Means and variances that batch norms keep; other buffers may hold an infinity for a reason"
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    return [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]


def _copy(to: list, of: list) -> None:
    if of: torch._foreach_copy_(to, of)


def _event(device: torch.device):
    "What tells that all that was asked of `device` so far is done; None on a CPU, which is never behind"
    if device.type == "cpu": return None
    event = torch.Event(device)
    event.record()
    return event
