"""What our Learner and callbacks override of fastai still is what it was; one clear line where it is not."""
import inspect
import re

import fastai
import pytest
from fastai.callback import schedule  # noqa: F401  (patches `fit_one_cycle` and `lr_find`)
from fastai.callback.progress import ProgressCallback
from fastai.learner import Learner, Recorder

from cifar_fastai.training import learner
from cifar_fastai.training.learner import ImageLearner

EVENTS = "(self, f, event_type, ex, final=noop)"
SIGNATURES = {   # of fastai 2.8.12; private ones first
    "Learner._call_one": "(self, event_name)", "Learner._with_events": EVENTS,
    "Learner._split": "(self, b)",
    "Learner._do_epoch_validate": "(self, ds_idx=1, dl=None)",
    "ProgressCallback._launch_pbar": "(self)",
    "Learner.__exit__": "(self, exc_type, exc_value, tb)",
    "Learner.no_bar": "(self)", "Learner.create_opt": "(self)", "Learner.freeze_to": "(self, n)",
    "Learner.add_cb": "(self, cb)", "Learner.remove_cb": "(self, cb)",
    "Learner.fit": "(self, n_epoch, lr=None, wd=None, cbs=None, reset_opt=False, start_epoch=0)",
    "Learner.validate": "(self, ds_idx=1, dl=None, cbs=None)",
    "Learner.validation_context": "(self, cbs=None, inner=False)",
    "Learner.fit_one_cycle": "(self, n_epoch, lr_max=None, div=25.0, div_final=100000.0, pct_start=0.25, "
                             "wd=None, moms=None, cbs=None, reset_opt=False, start_epoch=0)",
    "Recorder.before_fit": "(self)", "Recorder.after_batch": "(self)", "Recorder.after_train": "(self)"}
CLASSES = {"Learner": Learner, "Recorder": Recorder, "ProgressCallback": ProgressCallback}


def signature(name: str) -> str:
    "As it stands in fastai's source, without types"
    owner, method = name.split(".")
    found = inspect.signature(getattr(CLASSES[owner], method, lambda: None))
    parameters = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    return re.sub(r"<function (\w+) at \w+>", r"\1", str(found.replace(parameters=parameters)))


def changed(name: str) -> str | None:
    "A line about a method that is not what it was"
    if (now := signature(name)) == SIGNATURES[name]: return None
    return f"fastai {fastai.__version__} has {name}{now}, not {SIGNATURES[name]}: ours must follow"


@pytest.mark.parametrize("name", SIGNATURES)
def test_fastai_has_not_changed_what_we_override(name): assert changed(name) is None, changed(name)


def test_a_change_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(Learner, "_split", lambda self, b, device: None)
    assert "has Learner._split(self, b, device), not (self, b): ours must follow" in changed("Learner._split")


def test_every_method_of_fastai_that_our_learner_overrides_is_watched_and_the_private_ones_are_explained():
    ours = {n for n, v in vars(ImageLearner).items() if inspect.isfunction(v) and hasattr(Learner, n)}
    ours -= {"__doc__", "tta", "lr_find", "distrib_ctx"}     # take whatever fastai's take
    assert {f"Learner.{n}" for n in ours} <= SIGNATURES.keys()
    for name in ours:
        if name.startswith("_"): assert re.search(rf"^    {name} ", learner.__doc__, re.M), name
