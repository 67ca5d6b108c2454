"""`KeepBest`: the weights of the epoch that is best on a holdout, never on the test set.

    learn.fit(20, cbs=KeepBest())          # afterwards the Learner has the weights of its best epoch
"""
import logging

from fastai.callback.core import Callback
from fastai.learner import Recorder

from ..errors import InputError, UnknownName
from .callbacks import epoch_row, fitting

__all__ = ["KeepBest", "refuse_test_set", "validated"]

log = logging.getLogger("cifar_fastai")


def refuse_test_set(
    learn,
    what: str,     # that wants to choose, as the user calls it
) -> None:
    "Raises: InputError where what validates is the test set, as `cifar_dataloaders` says"
    if getattr(learn.dls, "valid_name", None) == "test":
        raise InputError(f"{what} would choose by the test set. "
                         'Keep a holdout: valid="holdout" (--valid holdout).')


def validated(
    learn,
    name: str,     # "valid_loss", "accuracy" …
) -> float:
    "The last epoch's value of a metric. Raises: InputError where it is not known or nothing was validated"
    names, row = list(learn.recorder.metric_names[1:-1]), epoch_row(learn.recorder)
    if name not in names: raise UnknownName("metric", name, names)
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

    def __init__(self): self.best, self.epoch_of_best, self.weights = None, None, None

    def before_fit(self):
        self.run = fitting(self.learn)
        if not self.run: return
        refuse_test_set(self.learn, "keeping the best weights")
        self.best, self.epoch_of_best, self.weights = None, None, None

    def after_epoch(self):
        now = validated(self.learn, "accuracy"), -validated(self.learn, "valid_loss")
        if self.best is not None and now <= tuple(self.best): return
        self.best, self.epoch_of_best = now, self.epoch + 1
        self.weights = {k: v.detach().clone() for k, v in self.learn.model.state_dict().items()}

    def after_fit(self):
        "Put the best weights in, unless the fit ends in an error: then the last ones are to be looked at"
        if self.weights is None or getattr(self.learn, "ending", None) is not None: return
        self.learn.model.load_state_dict(self.weights)
        self.learn.epoch_of_best = self.epoch_of_best
        log.info("kept        the weights of epoch %d: holdout accuracy %.2f %%", self.epoch_of_best,
                 100 * self.best[0])

    def state_dict(self): return {"best": self.best, "epoch": self.epoch_of_best, "weights": self.weights}

    def load_state_dict(self, state):
        self.best, self.epoch_of_best, self.weights = state["best"], state["epoch"], state["weights"]
