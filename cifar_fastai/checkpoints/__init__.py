"""Checkpoints: a fit that is stopped or killed resumes to the same weights; a failing one stops in time.

In: any fastai `Learner` in a fit. Out: two verified files a run, without pickled code, and callbacks that end
a fit in order.

Read checkpoint first (the callback), then learner_state (what is saved) and store (how it is written), then
stop_on_nonfinite and stop_on_signal.
"""
from .checkpoint import Checkpoint
from .learner_state import generators, restore_generators
from .stop_on_nonfinite import StopOnNonFinite
from .stop_on_signal import StopOnSignal, Stopped
from .store import CheckpointError, CheckpointStore, differences, verified

__all__ = ["Checkpoint", "CheckpointError", "CheckpointStore", "StopOnNonFinite", "StopOnSignal", "Stopped",
           "differences", "generators", "restore_generators", "verified"]
