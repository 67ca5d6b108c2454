"""A callback that only looks changes nothing: weights and records are those of a fit without it (F31)."""
import hashlib
import signal

import pytest
import torch
from fastai.callback.core import Callback, CancelEpochException
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from stock import stock_dls
from tiny import tiny_net
from torch import nn

from cifar_fastai.checkpoints.checkpoint import Checkpoint
from cifar_fastai.checkpoints.stop_on_nonfinite import StopOnNonFinite
from cifar_fastai.checkpoints.stop_on_signal import StopOnSignal
from cifar_fastai.errors import InputError
from cifar_fastai.explain.gradcam_callback import GradCAMCallback
from cifar_fastai.explain.interpretation import ImageInterpretation
from cifar_fastai.loaders.block import cifar_dataloaders
from cifar_fastai.runs.logs import History, TensorBoardLog
from cifar_fastai.training.callbacks import EpochSeed, EpochTable, fitting, inside_fit
from cifar_fastai.training.precision import Precision
from cifar_fastai.training.progress import WatchProgress
from cifar_fastai.training.records import DeviceRecorder, KeepBest, validated
from cifar_fastai.training.schedules import constant, flat_cos, one_cycle, plateau, step
from cifar_fastai.tricks.regularisers import ClipGradients, L1Loss, mixing

LOOKS = {
    "validate": lambda learn: learn.validate(),
    "validate the training set": lambda learn: learn.validate(0),
    "get_preds": lambda learn: learn.get_preds(),
    "get_preds inner": lambda learn: learn.get_preds(inner=True),
    "tta": lambda learn: learn.tta(),
    "interpretation": lambda learn: ImageInterpretation.from_learner(learn, tta=True),
    "a fit of another Learner": lambda learn: another().fit(1),
}
SCHEDULES = {"one_cycle": lambda: one_cycle(.1, 3, moms=(.9, .8, .9)), "flat_cos": lambda: flat_cos(.1, 3),
             "step": lambda: step(.1, 3, 1), "constant": lambda: constant(.05, 3),
             "plateau": lambda: plateau(.1, 3, patience=0)}


def another():
    with torch.random.fork_rng(): net = small_net()
    learn = Learner(stock_dls(), net, CrossEntropyLossFlat(), cbs=[EpochSeed(), StopOnNonFinite()])
    learn.remove_cb(learn.progress).logger = lambda *_: None
    return learn


def small_net(n_out=4, n_in=3, norm="bn"):
    "With dropout, so that another draw is another net"
    torch.manual_seed(0)
    net = tiny_net(n_out)
    net.flatten = nn.Sequential(nn.Flatten(), nn.Dropout(.3))
    return net


class Looks(Callback):
    "Calls `look` at `event`; in the middle of an epoch at the second training batch alone"
    def __init__(self, look, event="after_epoch", order=0):
        self.look, self.order, self.seen, self.busy = look, order, [], False
        setattr(self, event, self.now if "epoch" in event else self.once)

    def now(self):
        if self.busy: return     # a stock Learner calls it within its own look again, and waits for ever
        self.busy = True
        try: self.seen.append(self.look(self.learn))
        finally: self.busy = False

    def once(self):
        if self.training and self.iter == 1: self.now()


def ours(learnable, valid="holdout", num_workers=0, **kwargs):
    from cifar_fastai.training.learner import cifar_learner
    dls = cifar_dataloaders(learnable, 32, "pad_crop_flip", valid, num_workers=num_workers, device="cpu")
    return cifar_learner(dls, small_net(), **{"precision": "bf16", "smoothing": 0.0, **kwargs})


def callbacks(folder, schedule="one_cycle", mix="mixup"):
    "Every callback of ours that the default Learner does not have"
    return [GradCAMCallback("layer3", n=4), StopOnNonFinite(), StopOnSignal(), Checkpoint(folder / "saved"),
            KeepBest(), L1Loss(1e-4), ClipGradients(.1, 1), mixing(**{mix: .4}), History(folder / "h.csv"),
            TensorBoardLog(folder / "board"), SCHEDULES[schedule]()]


def digest(model):
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest()


def record(learn, cbs):
    "Weights, optimiser, and everything that the callbacks have on record"
    cam, saved, history, board = cbs[0], cbs[3], cbs[8], cbs[9]
    board.close()
    rec = learn.recorder
    momenta = [v for s in learn.opt.state_dict()["state"].values() for v in s.values() if torch.is_tensor(v)]
    return {"weights": digest(learn.model), "momenta": [v.sum().item() for v in momenta],
            "values": [list(v) for v in rec.values], "losses": [float(v) for v in rec.losses],
            "lrs": list(rec.lrs), "iters": list(rec.iters), "hps": dict(cbs[10].hps),
            "maps": {e: m.sum().item() for e, m in cam.maps.items()}, "history": history.path.read_text(),
            "board": board.step, "saved": sorted(p.name for p in saved.store.folder.glob("*")),
            "done": learn.epoch_seed.done, "best": cbs[4].best, "train_iter": learn.train_iter}


def fitted(learn, folder, looks=(), **kwargs):
    learn.logger, lines = print, []
    learn.epoch_table.write = lambda line: lines.append(line.rsplit(None, 1)[0])     # without the time
    cbs = callbacks(folder, **kwargs)
    learn.fit(3, .05, cbs=[*looks, *cbs])
    return record(learn, cbs) | {"table": lines}


@pytest.fixture(scope="module")
def alone(learnable, tmp_path_factory):
    return fitted(ours(learnable), tmp_path_factory.mktemp("alone"))


@pytest.mark.no_rounding
@pytest.mark.parametrize("event, order", [("after_epoch", 0), ("after_epoch", 1100), ("before_epoch", 0),
                                          ("after_batch", 0), ("before_batch", 20)])
@pytest.mark.parametrize("look", LOOKS)
def test_a_look_from_a_callback_changes_nothing(learnable, alone, tmp_path, look, event, order):
    looks = Looks(LOOKS[look], event, order)
    assert fitted(ours(learnable), tmp_path, [looks]) == alone and len(looks.seen) == 3


@pytest.mark.no_rounding
def test_what_changes_the_draws_is_noticed(learnable, alone, tmp_path):
    "The control: an EpochSeed that counts a look as an epoch, as it once did"
    def spoil(learn): learn.epoch_seed.done += 1
    spoiled = fitted(ours(learnable), tmp_path, [Looks(spoil)])
    assert spoiled["weights"] != alone["weights"] and spoiled["done"] != alone["done"]


@pytest.mark.no_rounding
@pytest.mark.parametrize("kwargs", [{"mix": "cutmix"}, *({"schedule": s} for s in SCHEDULES)])
def test_under_every_schedule_and_mixing(learnable, tmp_path, kwargs):
    looks = [Looks(LOOKS["validate"], order=0), Looks(LOOKS["get_preds"], "after_batch"),
             Looks(LOOKS["interpretation"], order=56)]
    first, second = tmp_path / "1", tmp_path / "2"
    assert fitted(ours(learnable), first, looks, **kwargs) == fitted(ours(learnable), second, **kwargs)


def test_a_look_sees_what_it_would_see_after_the_fit(learnable):
    looks = [Looks(LOOKS[n], order=1100) for n in ("validate", "get_preds", "tta")]
    middle = Looks(LOOKS["get_preds"], "after_batch")
    learn = ours(learnable)
    learn.logger = lambda *_: None
    learn.fit(1, .05, cbs=[*looks, middle, mixing(mixup=.4)])
    values, (preds, targs), (views, _) = (cb.seen[0] for cb in looks)
    assert list(values) == list(learn.validate()) and torch.equal(preds, learn.get_preds()[0])
    assert torch.equal(views, learn.tta()[0]) and not torch.equal(views, preds)
    probs, _ = middle.seen[0]
    assert torch.allclose(probs.sum(1), torch.ones(len(probs))), "probabilities, though MixUp holds the loss"


@pytest.mark.no_rounding
def test_a_look_at_training_pictures_in_the_middle_of_their_epoch_in_workers(learnable):
    def weights(*cbs):
        learn = ours(learnable, num_workers=2)
        learn.logger = lambda *_: None
        learn.fit(2, .05, cbs=cbs)
        learn.dls.train.close()
        return digest(learn.model)
    assert weights(Looks(LOOKS["validate the training set"], "after_batch")) == weights()


@pytest.mark.no_rounding
def test_lr_find_between_two_fits_changes_nothing(learnable):
    def two_fits(between):
        learn, looks = ours(learnable), Looks(LOOKS["validate"])
        learn.add_cb(looks).logger = lambda *_: None
        learn.fit(1, .05)
        between(learn)
        learn.fit(1, .05)
        return digest(learn.model), [float(v) for v in learn.recorder.losses], learn.epoch_seed.done
    def finds(learn): learn.lr_find(num_it=40, show_plot=False)
    assert two_fits(finds) == two_fits(lambda learn: None) != two_fits(lambda learn: learn.fit(1))


@pytest.mark.no_rounding
@pytest.mark.parametrize("start", [lambda learn: learn.fit(1), lambda learn: learn.lr_find(num_it=40)])
def test_a_fit_of_the_same_learner_from_its_own_callback_is_refused(learner, start):
    with pytest.raises(InputError, match="from a callback of a fit of the same Learner"):
        learner().fit(1, cbs=Looks(start))


# stock Learners, whose own Recorder forgets at a look what it has

def stock(*cbs):
    torch.manual_seed(0)
    learn = Learner(stock_dls(24, 12), small_net(), CrossEntropyLossFlat(), opt_func=SGD, metrics=accuracy,
                    cbs=cbs)
    learn.remove_cb(learn.progress).logger = lambda *_: None
    learn.dls.train.rng.seed(0)
    return learn


def one_by_one(folder):
    "Each of our callbacks, as a name → function that makes it"
    return {
        "EpochSeed": EpochSeed, "EpochTable": lambda: EpochTable(lambda _: None),
        "WatchProgress": WatchProgress, "GradCAMCallback": lambda: GradCAMCallback("layer3", n=4),
        "StopOnNonFinite": StopOnNonFinite, "late StopOnNonFinite": lambda: StopOnNonFinite(late=True),
        "StopOnSignal": StopOnSignal, "Checkpoint": lambda: Checkpoint(folder / "saved"),
        "KeepBest": KeepBest, "L1Loss": lambda: L1Loss(1e-3), "ClipGradients": lambda: ClipGradients(.1, 1),
        "mixup": lambda: mixing(mixup=.4), "cutmix": lambda: mixing(cutmix=.4), "Precision": Precision,
        "History": lambda: History(folder / "h.csv"), "DeviceRecorder": DeviceRecorder,
        "TensorBoardLog": lambda: TensorBoardLog(folder / "board"), **SCHEDULES}


@pytest.mark.no_rounding
@pytest.mark.parametrize("look", [*LOOKS, "lr_find between"])
@pytest.mark.parametrize("name", one_by_one(None))
def test_every_callback_bears_a_look_on_a_stock_learner(tmp_path, name, look):
    "Two looks move the generator of fastai's own loader, whoever calls them: weights are then not compared"
    shuffles = look in ("validate the training set", "lr_find between")

    def outcome(folder, *looks):
        cb = one_by_one(folder)[name]()
        learn = stock(EpochSeed(), *([] if name == "EpochSeed" else [cb]))
        learn.path = tmp_path       # where a stock lr_find keeps the weights
        for k in range(2):
            learn.fit(2, .02, cbs=looks)
            if look == "lr_find between" and k == 0 and looks: learn.lr_find(num_it=30, show_plot=False)
        if hasattr(cb, "close"): cb.close()
        rows, maps = vars(cb).get("rows", []), vars(cb).get("raw", {})
        return shuffles or digest(learn.model), learn.epoch_seed.done, len(rows), list(maps)
    looks = Looks(LOOKS.get(look, lambda learn: None), order=100)
    assert outcome(tmp_path / "1", looks) == outcome(tmp_path / "2") and len(looks.seen) >= 4


@pytest.mark.no_rounding
def test_rows_that_a_look_has_spoiled_are_left_out_or_refused_on_a_stock_learner(tmp_path):
    "An order below the Recorder's: fastai's own table shows the row of the look"
    history, lines = History(tmp_path / "h.csv"), []
    learn = stock(history, EpochTable(lines.append), TensorBoardLog(tmp_path / "board"))
    learn.logger = print
    learn.fit(1, cbs=Looks(LOOKS["validate"]))
    learn.tensor_board_log.close()
    assert list(history.rows[0]) == ["epoch", "lr", "mom"] and lines[1].split()[1:4] == ["-", "-", "-"]
    with pytest.raises(InputError, match="before the epoch was recorded"): validated(learn, "accuracy")


@pytest.mark.no_rounding
@pytest.mark.parametrize("look", ["validate", "get_preds", "tta"])
def test_which_loop_is_at_work_is_known_on_a_stock_learner(look):
    class Asks(Callback):
        def before_fit(self): said.append((fitting(self.learn), inside_fit(self.learn)))
    said, learn = [], stock(Asks())
    learn.fit(1, cbs=Looks(LOOKS[look], order=100))
    LOOKS[look](learn)
    assert said == [(True, False), (False, True), (False, False)]


def test_a_validation_that_is_passed_over_leaves_the_callbacks_of_the_fit_at_work(learner, capsys):
    class Skips(Callback):
        def before_validate(self):
            if self.epoch == 0: raise CancelEpochException
    maps, stop, handlers = GradCAMCallback("layer3", measure=False), StopOnSignal(), []
    learn = learner()
    learn.logger = print
    learn.fit(3, cbs=[Skips(), maps, stop, Callback(after_epoch=lambda cb: handlers.append(
        signal.getsignal(signal.SIGTERM)))])
    assert set(maps.maps) == {0, 1, 2, 3} and len(capsys.readouterr().out.splitlines()) == 4
    assert len(set(map(str, handlers))) == 1 and "StopOnSignal" in str(handlers[-1])
