"""`torch.compile` for the steps of a fit and nothing else: maps, checkpoints, predictions see the plain net.

    learn.fit_one_cycle(20, .1, cbs=Compiled())
"""
from fastai.callback.core import Callback
from fastai.torch_core import get_model

from ..training import fitting, inside_fit

__all__ = ["Compiled"]


class Compiled(Callback):
    """Train the net through `torch.compile`, which is given the net anew at each epoch and keeps what it has
    compiled. Hooks that are put on between the epochs, as Grad-CAM does, meet the plain net; those that were
    there before, or come within an epoch, may be left out by torch. Losses agree with the plain net's to
    rounding: a run is resumed with it to the same bytes. Raises what torch does where it cannot compile"""
    order, remove_on_fetch = 12, True      # after `SharedFit`, which puts another module around the net

    def __init__(self, **options): self.options = options      # of `torch.compile`: mode, backend …

    def before_train(self):
        if fitting(self.learn): get_model(self.learn.model).compile(**self.options)

    def after_train(self): self.cleanup()

    def after_fit(self):
        "Also of one that was cancelled within an epoch; a look from within a fit ends nothing"
        if not inside_fit(self.learn): self.cleanup()

    def cleanup(self):
        "The plain net, also where a fit is interrupted"
        get_model(self.learn.model)._compiled_call_impl = None
