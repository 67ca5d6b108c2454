"""The loss of each training batch of a fit, unsmoothed."""
from fastai.callback.core import Callback


class BatchLosses(Callback):
    "The loss of each training batch, as it is"
    run_valid = False
    def __init__(self): self.seen = []
    def after_loss(self): self.seen.append(self.learn.loss.item())


def losses(learn, fit=lambda learn: learn.fit(1)):
    "Of each training batch of `fit`"
    cb = BatchLosses()
    with learn.added_cbs(cb): fit(learn)
    return cb.seen
