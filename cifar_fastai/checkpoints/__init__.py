"""Checkpoints: a fit that is stopped or killed resumes to the same weights; a failing one stops in time.

In: any fastai `Learner` in a fit. Out: two verified files a run, without pickled code, and callbacks that end
a fit in order.

Read checkpoint first (the callback), then learner_state (what is saved) and store (how it is written), then
stop_on_nonfinite and stop_on_signal.
"""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={   # `store` needs no fastai
    "checkpoint": ["Checkpoint"], "stop_on_nonfinite": ["StopOnNonFinite"],
    "stop_on_signal": ["StopOnSignal", "Stopped"],
    "store": ["CheckpointError", "CheckpointStore", "differences", "verified"]})
