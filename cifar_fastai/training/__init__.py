"""Train: a fastai `Learner` with its range test, schedules, losses and optimisers.

In: `DataLoaders` and a net, by name, function or module. Out: an ordinary `Learner`, with `lr_find` and
`fit_one_cycle` as its users know them.

Read learner first, then lr_finder and schedules (the rate), precision, losses and optimizers (what a step is
made of), then callbacks, progress and records (what watches it), and shared_fit (several processes).
"""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "callbacks": ["epoch_row", "fitting", "inside_fit"], "learner": ["ImageLearner", "cifar_learner"],
    "lr_finder": ["SLIDE_NEEDS", "SUGGESTIONS", "explain_rate", "fallback_rate", "minimum", "peak",
    "plausible_rate", "same_draws", "slide", "steep", "valley"], "optimizers": ["optimizer"],
    "precision": ["Precision", "precision_of"], "progress": ["BACKWARD", "RunDisplay"], "records":
    ["KeepBest"], "schedules": ["create_schedule"]})
