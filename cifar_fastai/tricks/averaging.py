"""Averaged weights: an exponential moving average beside the net, or lookahead, which pulls the net to it.

    learn.fit_one_cycle(20, .4, cbs=AverageWeights(decay=.95, every=5))
    learn.fit_one_cycle(8, .24, cbs=AverageWeights(decay=.77, every=5, lookahead=True))
"""
import torch
from fastai.callback.core import Callback
from fastai.torch_core import get_model, to_device
from torch import Tensor

from ..errors import InputError
from ..training import fitting

__all__ = ["AverageWeights"]


class AverageWeights(Callback):
    """Average the weights, and the running statistics of batch norm with them, over the steps of a fit.
    Validation sees the average, and the net ends with it, also beside callbacks that put other weights in.

    Without lookahead the net trains on as if there were none (Polyak & Juditsky 1992; every few steps as in
    Page 2019). With lookahead the net goes on from the average after each update (Zhang et al. 2019), and
    what is left of the average at an update grows from 0 to `decay` with the cube of the share of the fit
    that is done (Jordan 2024). Raises: InputError for a decay out of range"""
    order, remove_on_fetch = 70, True      # after the schedule has set the rate, before checkpoints

    def __init__(
        self,
        decay: float = 0.95,       # what is left of the average at an update
        every: int = 5,            # steps from one update to the next
        lookahead: bool = False,   # the net goes on from the average
    ):
        if not 0 < decay < 1: raise InputError(f"the decay is {decay}. Give a number between 0 and 1.")
        if every < 1: raise InputError(f"an average every {every} steps. Give 1 or more.")
        self.decay, self.every, self.lookahead = decay, every, lookahead
        self.average, self.own, self.done = None, None, 0       # `own`: the net's, while the average is in it
        self.stepped = False                                    # by the batch at hand

    def before_fit(self):
        self.run = fitting(self.learn)
        if self.run: self.average, self.own, self.done = _values(self.learn.model), None, 0

    def after_step(self): self.stepped = True

    def after_batch(self):
        if not self.stepped: return
        self.stepped, self.done = False, self.done + 1
        if self.done % self.every: return
        self._update(self.decay * (float(self.pct_train) ** 3 if self.lookahead else 1))
        if self.lookahead: self._put(self.average)

    def _update(self, decay: float) -> None:
        "average ← decay · average + (1 − decay) · net; counters of batch norm are copied"
        now = get_model(self.learn.model).state_dict()
        floats = [k for k, v in now.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.average[k] for k in floats], [now[k] for k in floats], 1 - decay)
        for k in now.keys() - set(floats): self.average[k].copy_(now[k])

    def _put(self, values: dict[str, Tensor]) -> None: get_model(self.learn.model).load_state_dict(values)

    def before_validate(self):
        if self.own is None and not self.lookahead:
            self.own = _values(self.learn.model)
            self._put(self.average)

    def after_epoch(self): self.cleanup()       # after those that keep, draw or judge what was validated

    def after_fit(self):
        "The average takes the net's place, unless the fit ends in an error: then the last are looked at"
        self.cleanup()
        if getattr(self.learn, "ending", None) is None and self.average is not None: self._put(self.average)
        self.average = None

    def cleanup(self):
        "Give the net its own weights back, also where validation is interrupted"
        if self.own is not None: self._put(self.own)
        self.own = None

    def state_dict(self): return {"average": self.average, "own": self.own, "done": self.done}

    def load_state_dict(self, state):
        device = next(self.learn.model.parameters()).device
        self.average, self.own = (to_device(state[k], device) for k in ("average", "own"))
        self.done = state["done"]
        self.cleanup()                            # saved in the middle of a validation


def _values(model) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in get_model(model).state_dict().items()}
