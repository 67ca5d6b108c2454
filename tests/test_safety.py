"""A fit that is stopped, killed or spoiled loses nothing, on a stock fastai Learner."""
import hashlib
import os
import re
import signal
import threading
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from fastai.callback.progress import CSVLogger
from fastai.callback.schedule import ParamScheduler  # noqa: F401  (patches `fit_one_cycle`)
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Callback, Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD, Adam, OptimWrapper, ranger
from torch import nn
from torch.utils.data import TensorDataset

from cifar_fastai import saving
from cifar_fastai.checkpoint import SaveError
from cifar_fastai.errors import InputError
from cifar_fastai.resume import Checkpoint
from cifar_fastai.safety import NonFiniteLoss, StopOnNonFinite, StopOnSignal, Stopped
from cifar_fastai.state import generators, restore_generators

EPOCHS, BATCHES = 6, 4
NESTEROV = partial(OptimWrapper, opt=torch.optim.SGD, momentum=0.9, nesterov=True, foreach=True)
OPTIMISERS = {"sgd": partial(SGD, mom=0.9), "adam": Adam, "nesterov": NESTEROV, "ranger": ranger}


class Noise(Callback):
    "Augmentation from the generator of the process, as stock fastai does it"
    run_valid = False
    def before_batch(self): self.learn.xb = (self.xb[0] + 0.1*torch.randn_like(self.xb[0]),)


def tiny(opt="nesterov", seed=0, cbs=(), **kwargs):
    "A Learner with what makes resuming hard: shuffling, noise, dropout, running means, momentum"
    torch.manual_seed(seed)
    x, y = torch.randn(32, 8), torch.arange(32) % 4
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))
    train, valid = [DataLoader(TensorDataset(x, y), bs=8, shuffle=shuffle) for shuffle in (True, False)]
    train.rng.seed(seed)
    learn = Learner(DataLoaders(train, valid), net, CrossEntropyLossFlat(), opt_func=OPTIMISERS[opt],
                    metrics=accuracy, cbs=[Noise(), *cbs], **kwargs)
    return learn.remove_cb(learn.progress)


def end_of(learn):
    "sha256 of weights, running means and optimiser; and all that the Recorder has"
    rec, momenta = learn.recorder, learn.opt.state_dict()["state"]
    momenta = [v for s in (momenta.values() if isinstance(momenta, dict) else momenta) for v in s.values()]
    tensors = [v for v in [*learn.model.state_dict().values(), *momenta] if torch.is_tensor(v)]
    return {"sha256": hashlib.sha256(b"".join(v.detach().numpy().tobytes() for v in tensors)).hexdigest(),
            "values": [list(v) for v in rec.values], "losses": [float(v) for v in rec.losses],
            "lrs": [float(v) for v in rec.lrs], "iters": list(rec.iters),
            "moms": [float(v) for v in getattr(rec, "hps", {}).get("mom", [])],
            "train_iter": learn.train_iter, "smooth": float(learn.smooth_loss)}


def fit(learn, folder=None, cbs=(), resume=False, epochs=EPOCHS, **kwargs):
    checkpoint = [Checkpoint(folder, fingerprint={"seed": 0}, resume=resume, **kwargs)] if folder else []
    with learn.no_logging(): learn.fit_one_cycle(epochs, 0.1, cbs=[*cbs, *checkpoint])
    return end_of(learn)


class Killed(BaseException):
    "As SIGKILL: no callback hears of it"


class KillAt(Callback):
    "Ends the fit at `event` of the n-th batch or epoch, after `Checkpoint`"
    order = 1100
    def __init__(self, event, n):
        self.n = n
        setattr(self, event, self.count)

    def count(self):
        self.n -= 1
        if self.n < 0: raise Killed


class SignalAt(KillAt):
    "Sends `signals` to this process there"
    order = 0

    def __init__(self, event, n, *signals):
        super().__init__(event, n)
        self.signals = signals

    def count(self):
        self.n -= 1
        if self.n == -1:
            for signum in self.signals: os.kill(os.getpid(), signum)


def scramble():
    "A new process has other generators"
    torch.manual_seed(999)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "Of several, each waits for the others longer than it works"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(): return {name: fit(tiny(name)) for name in OPTIMISERS}


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
    assert (tmp_path/"epoch-0006.pt").exists(), "the last is always saved"


def test_F20_a_finished_run_is_resumed_to_its_end(tmp_path, undisturbed):
    fit(tiny(), tmp_path)
    assert fit(tiny(), tmp_path, resume=True) == undisturbed["nesterov"]


def test_F20_without_a_checkpoint_resuming_starts_at_the_beginning(tmp_path, undisturbed):
    assert fit(tiny(), tmp_path/"none yet", resume=True) == undisturbed["nesterov"]


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
    monkeypatch.setattr("cifar_fastai.resume.restore_generators", lambda *_: None)
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
        def after_step(self): self.average = 0.9*self.average + self.learn.model[-1].bias.detach()
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
    whole = run(tiny(), tmp_path/"a")
    with pytest.raises(Killed): run(tiny(), tmp_path/"b", [KillAt("after_step", batches)])
    learn = tiny()
    scramble()
    assert run(learn, tmp_path/"b", resume=True) == whole


def test_stock_loggers_see_only_the_epochs_that_are_trained(tmp_path):
    log = lambda name: CSVLogger(tmp_path/name)
    with pytest.raises(Killed): fit(tiny(), tmp_path/"c", [log("first.csv"), KillAt("after_epoch", 3)])
    fit(tiny(), tmp_path/"c", [log("second.csv")], resume=True)
    rows = [line.split(",") for line in (tmp_path/"second.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["epoch", "4", "5"] and {len(row) for row in rows} == {5}


def test_validation_and_lr_find_touch_no_checkpoint(tmp_path):
    learn = tiny(cbs=[Checkpoint(tmp_path/"c")], path=tmp_path)
    with learn.no_logging():
        learn.validate(), learn.get_preds(), learn.lr_find(num_it=20, show_plot=False)
        assert not (tmp_path/"c").exists()
        learn.fit_one_cycle(1, 0.1)
    assert (tmp_path/"c"/"epoch-0001.pt").exists()


def test_generators_stand_again_where_they_stood():
    learn = tiny()
    state, first = generators(learn), [torch.rand(1), learn.dls.train.rng.random()]
    restore_generators(learn, state)
    assert [torch.rand(1), learn.dls.train.rng.random()] == first


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
    (tmp_path/"epoch-0004.pt").write_bytes(b"x")
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


# not a number

class SpoilBatch(Callback):
    "Puts `value` into the n-th training batch: a broken picture"
    run_valid = False
    def __init__(self, n, value=float("nan")): self.n, self.value = n, value
    def before_batch(self):
        if self.learn.train_iter != self.n: return
        self.learn.xb = (self.xb[0].index_fill(0, torch.tensor([2]), self.value),)


class SpoilLoss(SpoilBatch):
    def before_batch(self): pass
    def after_loss(self):
        if self.learn.train_iter != self.n: return
        self.learn.loss, self.learn.loss_grad = self.learn.loss*self.value, self.learn.loss_grad*self.value


class SpoilGradient(SpoilBatch):
    def before_batch(self): pass
    def before_step(self):
        if self.learn.train_iter == self.n: next(self.learn.model.parameters()).grad[0, 0] = self.value


class Weights(Callback):
    "The weights and running means as they are after each step"
    run_valid = False
    states = ()
    def before_fit(self): self.after_batch()
    def after_batch(self):
        self.states = [*self.states, {k: v.clone() for k, v in self.learn.model.state_dict().items()}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("spoil", [SpoilBatch, SpoilLoss, SpoilGradient])
@pytest.mark.parametrize("opt, batch, late", [("adam", 0, False), ("sgd", 2, True), ("nesterov", 3, True)])
def test_F13_what_is_no_number_stops_before_the_step(tmp_path, spoil, value, opt, batch, late):
    learn, weights = tiny(opt), Weights()
    found = f"epoch 1, batch {batch}: stopped before the step.*checkpoint: .*epoch-0001.pt"
    with pytest.raises(NonFiniteLoss, match=found) as error:
        fit(learn, tmp_path, [StopOnNonFinite(late), spoil(4 + batch, value), weights])
    assert error.value.exit_status == 1 and "\n" not in str(error.value)
    assert all(v.equal(weights.states[4 + batch][k]) for k, v in learn.model.state_dict().items())
    assert "nan" not in str(fit(learn, cbs=[StopOnNonFinite()])), "it can go on at once"


@pytest.mark.parametrize("rate", [1e4, 1e12, 1e31, 1e38])
@pytest.mark.parametrize("wd", [0., 0.01])
@pytest.mark.parametrize("opt, late", [*((opt, False) for opt in OPTIMISERS), ("nesterov", True)])
def test_F13_an_absurd_learning_rate_leaves_finite_weights(opt, late, rate, wd):
    learn = tiny(opt, wd=wd)
    try:
        with learn.no_logging(): learn.fit(4, rate, cbs=StopOnNonFinite(late))
    except NonFiniteLoss as error: assert "stopped before the step" in str(error)
    assert all(v.isfinite().all() for v in learn.model.state_dict().values())


def test_F13_control_without_the_callback_the_weights_are_spoiled():
    learn = tiny()
    fit(learn, cbs=[SpoilBatch(6)])
    assert not all(v.isfinite().all() for v in learn.model.state_dict().values())


def test_F13_spoiled_weights_never_replace_a_good_checkpoint(tmp_path):
    with pytest.raises(NonFiniteLoss, match="not saved. Last good checkpoint: .*epoch-0002.pt"):
        fit(tiny(), tmp_path, [SpoilBatch(10)])
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["epoch-0001.pt", "epoch-0002.pt"]


def test_an_infinity_that_a_model_keeps_for_a_reason_is_left_alone(tmp_path):
    learn = tiny()
    learn.model.register_buffer("mask", torch.tensor([0., float("-inf")]))
    fit(learn, tmp_path, [StopOnNonFinite()])
    assert learn.model.mask.tolist() == [0., float("-inf")]


def test_F13_lr_find_ends_where_the_loss_does(tmp_path):
    learn = tiny(cbs=[StopOnNonFinite()], path=tmp_path)
    with learn.no_logging(): learn.lr_find(num_it=40, show_plot=False, suggest_funcs=(), end_lr=1e3)
    with learn.no_logging(), learn.added_cbs(SpoilBatch(25)):
        learn.lr_find(num_it=40, show_plot=False, suggest_funcs=(), stop_div=False)
    assert len(learn.recorder.losses) == 25


def test_a_good_run_is_not_changed_by_being_watched(tmp_path, undisturbed):
    for late in (False, True):
        with StopOnSignal() as stop: end = fit(tiny(), tmp_path/str(late), [StopOnNonFinite(late), stop])
        assert end == undisturbed["nesterov"]


# signals

def handlers(): return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)


class Closed(Callback):
    "Whether `after_fit` came"
    def before_fit(self): self.done = False
    def after_fit(self): self.done = True


@pytest.mark.parametrize("signum, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("event, n", [("after_pred", 0), ("before_step", 9), ("after_epoch", 1),
                                      ("before_validate", 1)])
@pytest.mark.parametrize("block", [True, False])
def test_F3_a_signal_stops_and_loses_nothing(tmp_path, undisturbed, signum, status, event, n, block):
    before, closed, stop = handlers(), Closed(), StopOnSignal()
    with pytest.raises(Stopped, match=signal.Signals(signum).name + ".*checkpoint: .*epoch-000") as error, \
         stop if block else nullcontext():
        fit(tiny(), tmp_path, [stop, closed, SignalAt(event, n, signum)])
    assert error.value.exit_status == status and closed.done and handlers() == before
    learn = tiny()
    scramble()
    assert fit(learn, tmp_path, resume=True) == undisturbed["nesterov"]


@pytest.mark.parametrize("block", [True, False])
def test_F3_a_second_ctrl_c_stops_at_once(tmp_path, block):
    before, stop, learn = handlers(), StopOnSignal(), tiny()
    with pytest.raises(KeyboardInterrupt), stop if block else nullcontext():
        fit(learn, tmp_path, [stop, SignalAt("after_pred", 9, signal.SIGINT, signal.SIGINT)])
    assert handlers() == before and learn.train_iter == 5
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".tmp"]


def test_F3_a_signal_in_lr_find_leaves_the_weights_as_they_were(tmp_path):
    learn = tiny(path=tmp_path)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with pytest.raises(Stopped), StopOnSignal() as stop, learn.no_logging():
        learn.add_cbs([stop, SignalAt("after_pred", 7, signal.SIGTERM)])
        learn.lr_find(num_it=40, show_plot=False)
    assert all(v.equal(before[k]) for k, v in learn.model.state_dict().items())
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_F3_a_signal_in_a_prediction_pass_or_between_two_stops_there():
    learn = tiny()
    with pytest.raises(Stopped), StopOnSignal() as stop:
        learn.add_cbs([stop, SignalAt("after_pred", 2, signal.SIGTERM)])
        learn.get_preds()
    with pytest.raises(Stopped), StopOnSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        stop.check()
        raise AssertionError("went on")
    with pytest.raises(Stopped), StopOnSignal(): os.kill(os.getpid(), signal.SIGTERM)


def test_F3_after_a_fit_that_failed_the_handlers_are_the_old_ones_or_let_the_signal_pass():
    class Fail(Callback):
        def after_pred(self): raise RuntimeError("broken")
    before, stop, learn = handlers(), StopOnSignal(), tiny()
    with pytest.raises(RuntimeError): fit(learn, cbs=[stop, Fail()])
    assert handlers() == before
    with pytest.raises(RuntimeError), learn.added_cbs([Fail(), stop]):
        try: learn.fit(1)
        finally:
            with pytest.raises(KeyboardInterrupt): os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before


def test_F3_outside_the_main_thread_nothing_is_installed():
    before, seen = handlers(), []
    thread = threading.Thread(target=lambda: (fit(tiny(), cbs=[StopOnSignal()]), seen.append(True)))
    thread.start(), thread.join()
    assert seen and handlers() == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopOnSignal(): assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally: signal.signal(signal.SIGINT, before)
