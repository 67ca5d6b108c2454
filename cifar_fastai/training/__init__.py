"""Train: a fastai `Learner` with its range test, schedules, losses and optimisers.

In: `DataLoaders` and a net, by name, function or module. Out: an ordinary `Learner`, with `lr_find` and
`fit_one_cycle` as its users know them.

Read learner first, then lr_finder and schedules (the rate), precision, losses and optimizers (what a step is
made of), then callbacks, progress and records (what watches it), and shared_fit (several processes).
"""
from .callbacks import epoch_row, fitting, inside_fit
from .learner import ImageLearner, cifar_learner
from .lr_finder import (
    SLIDE_NEEDS,
    SUGGESTIONS,
    explain_rate,
    fallback_rate,
    minimum,
    peak,
    peak_factor,
    plausible_rate,
    same_draws,
    slide,
    steep,
    valley,
)
from .optimizers import optimizer
from .precision import Precision, precision_of
from .progress import BACKWARD, RunDisplay
from .records import KeepBest
from .schedules import create_schedule

__all__ = ["BACKWARD", "ImageLearner", "KeepBest", "Precision", "RunDisplay", "SLIDE_NEEDS", "SUGGESTIONS",
           "cifar_learner", "create_schedule", "epoch_row", "explain_rate", "fallback_rate", "fitting",
           "inside_fit", "minimum", "optimizer", "peak", "peak_factor", "plausible_rate", "precision_of",
           "same_draws", "slide", "steep", "valley"]
