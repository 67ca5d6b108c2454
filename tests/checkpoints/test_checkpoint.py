"""A fit that was killed goes on and ends like one that nobody disturbed, on a stock fastai Learner."""
import os
import re
from collections import deque

import pytest
import torch
from fastai.callback.progress import CSVLogger
from fastai.callback.schedule import ParamScheduler  # noqa: F401  (patches `fit_one_cycle`)
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.callback.training import GradientAccumulation
from fastai.learner import Callback, Learner
from fastai.losses import CrossEntropyLossFlat
from fits import EPOCHS, OPTIMISERS, KillAt, Killed, end_of, fit, scramble, tiny
from tiny import tiny_net
from torch import nn

from cifar_fastai import files as saving
from cifar_fastai.checkpoints.checkpoint import Checkpoint
from cifar_fastai.errors import InputError
from cifar_fastai.files import SaveError
from cifar_fastai.loaders.block import cifar_dataloaders

pytestmark = pytest.mark.no_rounding

# resuming

@pytest.mark.parametrize("opt", OPTIMISERS)
@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_F20_killed_after_any_epoch_ends_like_an_undisturbed_run(tmp_path, undisturbed, opt, epoch):
    with pytest.raises(Killed): fit(tiny(opt), tmp_path, [KillAt("after_epoch", epoch)])
    learn = tiny(opt)
    scramble()
    assert fit(learn, tmp_path, resume=True) == undisturbed[opt]


@pytest.mark.parametrize("opt", ["adam", "nesterov"])
@pytest.mark.parametrize("event, n", [*(("after_step", n) for n in (1, 4, 10, 23)),
                                      ("before_validate", 0), ("after_validate", 5)])
def test_F20_killed_after_a_batch_ends_like_an_undisturbed_run(tmp_path, undisturbed, opt, event, n):
    with pytest.raises(Killed): fit(tiny(opt), tmp_path, [KillAt(event, n)], every_minutes=0)
    learn = tiny(opt)
    scramble()
    assert fit(learn, tmp_path, resume=True, every_minutes=0) == undisturbed[opt]


def test_F20_killed_again_and_again_ends_like_an_undisturbed_run(tmp_path, undisturbed):
    times = 0
    while True:
        try: ended = fit(tiny(), tmp_path, [KillAt("after_step", 5)], resume=True, every_minutes=0)
        except Killed: times += 1; scramble()
        else: break
    assert ended == undisturbed["nesterov"] and times == 4


def test_F20_short_epochs_share_a_checkpoint_if_saving_shall_cost_little(tmp_path, undisturbed):
    with pytest.raises(Killed): fit(tiny(), tmp_path, [KillAt("after_epoch", 4)], share=1e-6)
    assert [p.name for p in tmp_path.glob("*.pt")] == ["epoch-0001.pt"]
    assert fit(tiny(), tmp_path, resume=True, share=1e-6) == undisturbed["nesterov"]
    assert (tmp_path / "epoch-0006.pt").exists(), "the last is always saved"


def test_F20_a_finished_run_is_resumed_to_its_end(tmp_path, undisturbed):
    fit(tiny(), tmp_path)
    assert fit(tiny(), tmp_path, resume=True) == undisturbed["nesterov"]


def test_F20_without_a_checkpoint_resuming_starts_at_the_beginning(tmp_path, undisturbed):
    assert fit(tiny(), tmp_path / "none yet", resume=True) == undisturbed["nesterov"]


def test_F21_control_other_seeds_epochs_and_unresumed_runs_end_elsewhere(tmp_path, undisturbed):
    ends = [undisturbed["nesterov"], fit(tiny(seed=1)), fit(tiny(), epochs=EPOCHS - 1)]
    with pytest.raises(Killed): fit(tiny(), tmp_path, [KillAt("after_epoch", 2)])
    state = Checkpoint(tmp_path).store.load_newest()
    learn = tiny()
    learn.model.load_state_dict(state["model"])
    ends.append(fit(learn))
    assert len({end["sha256"] for end in ends}) == 4 and ends[0]["values"] != ends[1]["values"]
    assert fit(tiny())["sha256"] == ends[0]["sha256"], "and the same run ends at the same bytes"


def test_the_generators_are_needed_for_the_same_end(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr("cifar_fastai.checkpoints.checkpoint.restore_generators", lambda *_: None)
    with pytest.raises(Killed): fit(tiny(), tmp_path, [KillAt("after_epoch", 2)])
    assert fit(tiny(), tmp_path, resume=True)["sha256"] != undisturbed["nesterov"]["sha256"]


def accumulating(): return GradientAccumulation(24)
def impatient(): return EarlyStoppingCallback("valid_loss", min_delta=10, patience=4)


@pytest.mark.parametrize("event, n", [("after_epoch", 2), ("after_batch", 10)])
@pytest.mark.parametrize("cb", [accumulating, impatient])
def test_what_stock_callbacks_keep_is_resumed(tmp_path, cb, event, n):
    whole = fit(tiny(), cbs=[cb()])
    with pytest.raises(Killed): fit(tiny(), tmp_path, [cb(), KillAt(event, n)], every_minutes=0)
    learn = tiny()
    scramble()
    assert fit(learn, tmp_path, [cb()], resume=True, every_minutes=0) == whole


def test_a_callbacks_own_state_is_resumed(tmp_path):
    class Mean(Callback):
        "An average of the weights, as `state_dict` gives it"
        def __init__(self): self.average = torch.zeros(4)
        def after_step(self): self.average = 0.9 * self.average + self.learn.model[-1].bias.detach()
        def state_dict(self): return {"average": self.average}
        def load_state_dict(self, state): self.average = state["average"]
    whole, half, resumed = Mean(), Mean(), Mean()
    fit(tiny(), cbs=[whole])
    with pytest.raises(Killed): fit(tiny(), tmp_path, [half, KillAt("after_step", 9)], every_minutes=0)
    fit(tiny(), tmp_path, [resumed], resume=True)
    assert resumed.average.equal(whole.average) and not half.average.equal(whole.average)


@pytest.mark.parametrize("batches", [3, 7, 13])
def test_fine_tuning_of_two_fits_is_resumed_in_either(tmp_path, batches):
    def run(learn, folder, cbs=(), resume=False):
        learn.add_cbs([*cbs, Checkpoint(folder, every_minutes=0, resume=resume)])
        with learn.no_logging():
            learn.fit_one_cycle(1, 0.1)
            learn.fit_one_cycle(3, 0.05)
        return end_of(learn)
    whole = run(tiny(), tmp_path / "a")
    with pytest.raises(Killed): run(tiny(), tmp_path / "b", [KillAt("after_step", batches)])
    learn = tiny()
    scramble()
    assert run(learn, tmp_path / "b", resume=True) == whole


def test_stock_loggers_see_only_the_epochs_that_are_trained(tmp_path):
    log = lambda name: CSVLogger(tmp_path / name)
    with pytest.raises(Killed): fit(tiny(), tmp_path / "c", [log("first.csv"), KillAt("after_epoch", 3)])
    fit(tiny(), tmp_path / "c", [log("second.csv")], resume=True)
    rows = [line.split(",") for line in (tmp_path / "second.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["epoch", "4", "5"] and {len(row) for row in rows} == {5}


def test_validation_and_lr_find_touch_no_checkpoint(tmp_path):
    learn = tiny(cbs=[Checkpoint(tmp_path / "c")], path=tmp_path)
    with learn.no_logging():
        learn.validate(), learn.get_preds(), learn.lr_find(num_it=20, show_plot=False)
        assert not (tmp_path / "c").exists()
        learn.fit_one_cycle(1, 0.1)
    assert (tmp_path / "c" / "epoch-0001.pt").exists()


# refusing

def wider():
    learn = tiny()
    learn.model[0], learn.model[1], learn.model[4] = nn.Linear(8, 20), nn.BatchNorm1d(20), nn.Linear(20, 4)
    return learn


def renamed():
    learn = tiny()
    learn.dls.vocab = ["cat", "dog", "frog", "ship"]
    return learn


@pytest.mark.parametrize("field, other", [
    ("architecture", lambda f: fit(wider(), f, resume=True)),
    ("classes", lambda f: fit(renamed(), f, resume=True)),
    ("optimiser", lambda f: fit(tiny("adam"), f, resume=True)),
    ("epochs", lambda f: fit(tiny(), f, resume=True, epochs=7)),
    ("schedule", lambda f: tiny().fit_one_cycle(6, 0.2, cbs=Checkpoint(f, resume=True))),
    ("schedule", lambda f: tiny().fit(6, 0.1, cbs=Checkpoint(f, resume=True))),
    ("seed", lambda f: fit_with_seed(f, 1)),
    ("already holds", lambda f: fit(tiny(), f)),
])
def test_F6_a_run_that_differs_is_refused_by_the_name_of_the_field(tmp_path, field, other):
    with pytest.raises(Killed): fit(tiny(), tmp_path, [KillAt("after_epoch", 1)])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match=field) as error: other(tmp_path)
    assert "\n" not in str(error.value) and error.value.exit_status == 2
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def fit_with_seed(folder, seed):
    tiny().fit_one_cycle(6, 0.1, cbs=Checkpoint(folder, fingerprint={"seed": seed}, resume=True))


def test_F4_a_bad_newest_checkpoint_costs_an_epoch_and_nothing_else(tmp_path, undisturbed, caplog):
    with pytest.raises(Killed): fit(tiny(), tmp_path, [KillAt("after_epoch", 3)])
    (tmp_path / "epoch-0004.pt").write_bytes(b"x")
    assert fit(tiny(), tmp_path, resume=True) == undisturbed["nesterov"]
    line, = caplog.messages
    assert re.search("epoch-0004.pt has 1 bytes.*: going back to .*epoch-0003.pt", line)


def test_F7_a_full_disk_ends_the_fit_and_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    fsync, left = os.fsync, [4]
    def full(fd):
        left[0] -= 1
        if left[0] < 0: raise OSError(28, "No space left on device")
        fsync(fd)
    monkeypatch.setattr(saving.os, "fsync", full)
    with pytest.raises(SaveError, match=r"epoch-0002.pt \([\d,]+ bytes\): No space"): fit(tiny(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-0001.json", "epoch-0001.pt"]


# our loaders, other people's callbacks

@pytest.mark.parametrize("every_minutes", [None, 0])
def test_F20_a_stock_learner_on_our_loaders_sees_the_epochs_that_come_next(learnable, tmp_path,
                                                                           every_minutes):
    def end(checkpoint, cbs):
        dls = cifar_dataloaders(learnable, 32, "pad_crop_flip", num_workers=0, device="cpu")
        torch.manual_seed(0)
        learn = Learner(dls, tiny_net(4), CrossEntropyLossFlat())
        checkpoint.every_minutes = every_minutes
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, .1, cbs=[checkpoint, *cbs])
        return learn.model.state_dict()
    whole = end(Checkpoint(tmp_path / "whole"), [])
    with pytest.raises(Killed): end(Checkpoint(tmp_path / "killed"), [KillAt("after_step", 12)])
    found = end(Checkpoint(tmp_path / "killed", resume=True), [])
    assert all(torch.equal(v, whole[k]) for k, v in found.items())


def test_what_no_checkpoint_takes_of_a_strangers_callback_is_left_out_with_a_warning(tmp_path, undisturbed):
    class Mine(Callback):
        def before_fit(self): self.losses, self.best, self.count = deque([1.]), tmp_path, 3
    with pytest.raises(Killed), pytest.warns(UserWarning, match="mine.losses is a deque: only tensors"):
        fit(tiny(), tmp_path / "run", [Mine(), KillAt("after_epoch", 2)])
    assert Checkpoint(tmp_path / "run").store.load_newest()["callbacks"]["mine"] == {"count": 3}
    learn = tiny()
    scramble()
    with pytest.warns(UserWarning): end = fit(learn, tmp_path / "run", [Mine()], True)
    assert end == undisturbed["nesterov"]


@pytest.mark.parametrize("ours", [False, True], ids=["stock loaders", "our loaders"])
def test_F20_a_second_fit_that_was_killed_before_its_first_checkpoint_begins_as_it_did(ours, tmp_path,
                                                                                       learnable):
    "As in `fine_tune`: the newest checkpoint is the end of the first fit"
    def end(checkpoint, cbs):
        learn = tiny()
        if ours:
            dls = cifar_dataloaders(learnable, 32, "pad_crop_flip", num_workers=0, device="cpu")
            torch.manual_seed(0)
            learn = Learner(dls, tiny_net(4), CrossEntropyLossFlat())
        learn.add_cbs([checkpoint, *cbs])
        with learn.no_bar(), learn.no_logging():
            for epochs in (1, 2): learn.fit_one_cycle(epochs, .1)
        return learn.model.state_dict()
    whole = end(Checkpoint(tmp_path / "whole"), [])
    with pytest.raises(Killed): end(Checkpoint(tmp_path / "killed"), [KillAt("after_step", 6)])
    scramble()
    found = end(Checkpoint(tmp_path / "killed", resume=True), [])
    assert all(torch.equal(v, whole[k]) for k, v in found.items())
