"""The contract with fastai: what its documentation shows for a classifier of pictures, each called once on a
stock Learner over stock loaders and once on ours, on the same pictures. A row gives what both must agree on.

All training pictures stand in one batch, so that their order, which the two shuffle differently, changes no
more than the last digits.
"""
import io
import math
import pickle
import subprocess
import sys
from contextlib import redirect_stdout
from copy import deepcopy
from functools import partial
from multiprocessing.pool import ThreadPool

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.optimizer import SGD, OptimWrapper
from fastai.vision.all import (
    ActivationStats,
    BnFreeze,
    Callback,
    CategoryBlock,
    ChannelsLast,
    ClassificationInterpretation,
    CollectDataCallback,
    CrossEntropyLossFlat,
    CSVLogger,
    CutMix,
    DataBlock,
    DataLoaders,
    EarlyStoppingCallback,
    F1Score,
    FetchPredsCallback,
    FocalLossFlat,
    GradientAccumulation,
    GradientClip,
    HookCallback,
    ImageBlock,
    IndexSplitter,
    Interpretation,
    L,
    LabelSmoothingCrossEntropy,
    Learner,
    MCDropoutCallback,
    MixUp,
    Normalize,
    ParamScheduler,
    ProgressCallback,
    ReduceLROnPlateau,
    SaveModelCallback,
    SchedCos,
    ShortEpochCallback,
    ShowGraphCallback,
    TensorCategory,
    TensorImage,
    TerminateOnNaNCallback,
    accuracy,
    before_batch_cb,
    combine_scheds,
    error_rate,
    get_c,
    hook_output,
    load_learner,
    minimum,
    noop,
    slide,
    steep,
    top_k_accuracy,
    valley,
)
from fasttransform import Transform
from PIL import Image
from tiny import CLASSES, learnable, tiny_net
from torch import nn

from cifar_fastai.loaders.block import cifar_block, cifar_dataloaders
from cifar_fastai.models import layer_groups
from cifar_fastai.training.learner import cifar_learner

N_TRAIN, N_TEST = 48, 24
ROWS = []


def row(f):
    "A line of the table: what `f` makes of a `Side` must be the same for both"
    ROWS.append(f)
    return f


def label(path): return CLASSES[int(path.stem.split("_")[1])]
def listed(folder): return sorted(folder.glob("*.png"))


class Stock:
    "fastai's own DataBlock and Learner"
    name = "stock"

    def __init__(self, data, pictures, path): self.data, self.pictures, self.path = data, pictures, path

    def block(self):
        return DataBlock((ImageBlock, CategoryBlock(vocab=list(CLASSES), sort=False)), get_items=listed,
                         get_y=label, splitter=IndexSplitter(range(N_TRAIN, N_TRAIN + N_TEST)),
                         batch_tfms=Normalize.from_stats(self.data.mean, self.data.std, cuda=False))

    @property
    def source(self): return self.pictures

    def dls(self, bs=N_TRAIN):
        return self.block().dataloaders(self.source, path=self.path, bs=bs, val_bs=2 * bs, num_workers=0,
                                        device="cpu")

    opt = partial(OptimWrapper, opt=torch.optim.SGD, momentum=.9, nesterov=True, weight_decay=5e-4)

    def learn(self, dls=None, opt=None, net=None, **kwargs):
        own = {"loss_func": CrossEntropyLossFlat(), "splitter": layer_groups, "metrics": accuracy, "lr": .1,
               "moms": (.9, .9, .9)}
        return Learner(dls or self.dls(), net or first_net(), opt_func=opt or self.opt, path=self.path,
                       **own | kwargs)


class Ours(Stock):
    "Our DataBlock and our Learner"
    name = "ours"

    def block(self): return cifar_block(self.data, None)
    @property
    def source(self): return self.data

    def dls(self, bs=N_TRAIN):
        return cifar_dataloaders(self.data, bs, None, num_workers=0, device="cpu", path=self.path)

    def learn(self, dls=None, opt=None, net=None, **kwargs):
        learn = cifar_learner(dls or self.dls(), net or first_net(), opt=opt or "sgd", precision="fp32",
                              smoothing=0.0, path=self.path, **kwargs)
        learn.fit_one_cycle = partial(learn.fit_one_cycle, div_final=1e5, anneal="cos")    # fastai's numbers
        return learn


def first_net():
    torch.manual_seed(0)
    return tiny_net(4)


@pytest.fixture(scope="module")
def data(): return learnable(N_TRAIN, N_TEST)


@pytest.fixture(scope="module")
def pictures(data, tmp_path_factory):
    "The pictures of `data` as files, in its order"
    folder = tmp_path_factory.mktemp("pictures")
    for k, (x, y) in enumerate(zip([*data.x_train, *data.x_test], [*data.y_train, *data.y_test])):
        Image.fromarray(x).save(folder / f"{k:03}_{y}.png")
    return folder


def recorded(learn):
    "Losses and metrics of the last fit"
    rec = learn.recorder
    return [float(v) for v in rec.losses], [list(map(float, v)) for v in rec.values]


def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def fitted(side, n=2, lr=.1, learn=None, **kwargs):
    "What a fit records, and the weights that it ends with"
    learn = learn or side.learn()
    learn.fit(n, lr, **kwargs)
    return *recorded(learn), weights(learn)


# fits and schedules

@row
def fit(side): return fitted(side)
@row
def fit_with_weight_decay(side): return fitted(side, wd=.1)
@row
def fit_in_slices(side): return fitted(side, lr=slice(1e-3, .1))


@row
def fit_twice_and_reset_the_optimiser(side):
    learn = side.learn()
    fitted(side, learn=learn)
    return fitted(side, learn=learn), fitted(side, learn=learn, reset_opt=True)


@row
def fit_from_a_later_epoch(side):
    learn = side.learn()
    learn.fit(3, .1, start_epoch=2)
    return [float(v) for v in learn.recorder.losses]


@row
def fit_one_cycle(side):
    learn = side.learn()
    learn.fit_one_cycle(3, .2, div=10., div_final=100., pct_start=.4, moms=(.95, .85, .95))
    return recorded(learn), learn.recorder.hps


@row
def fit_one_cycle_in_slices(side):
    learn = side.learn()
    learn.fit_one_cycle(2, slice(1e-4, 1e-2))
    return recorded(learn), [h["lr"] for h in learn.opt.hypers]


@row
def fit_flat_cos(side):
    learn = side.learn()
    learn.fit_flat_cos(3, .1)
    return recorded(learn), learn.recorder.hps["lr"]


@row
def fit_sgdr(side):
    learn = side.learn()
    learn.fit_sgdr(2, 1, .1)
    return recorded(learn), learn.recorder.hps["lr"]


@row
def fine_tune(side):
    learn = side.learn()
    learn.fine_tune(2, .02, freeze_epochs=1)
    return recorded(learn), weights(learn), [h["lr"] for h in learn.opt.hypers]


def trains(learn): return [n for n, p in learn.model.named_parameters() if p.requires_grad]


@row
def freeze(side):
    learn = side.learn()
    learn.freeze()
    return trains(learn), fitted(side, learn=learn)


@row
def freeze_without_norms(side):
    learn = side.learn(train_bn=False)
    learn.freeze()
    assert trains(learn) == ["fc.weight", "fc.bias"]
    return fitted(side, learn=learn)


@row
def freeze_to(side):
    learn = side.learn()
    learn.freeze_to(-2)
    return trains(learn), learn.opt.frozen_idx


@row
def unfreeze(side):
    learn = side.learn()
    learn.freeze()
    learn.unfreeze()
    return trains(learn), fitted(side, learn=learn)


@row
def learning_rates_that_are_set_by_group(side):
    learn = side.learn()
    learn.create_opt()
    learn.opt.set_hyper("lr", [1., 2., 3.])
    learn.opt.set_hypers(mom=.5)
    return [(h["lr"], h["mom"]) for h in learn.opt.hypers], [len(ps) for ps in learn.opt.param_lists]


@row
def lr_find(side):
    learn = side.learn()
    before = weights(learn)
    with learn.no_bar():
        found = learn.lr_find(1e-5, 1., 30, stop_div=False, suggest_funcs=(valley, slide, minimum, steep))
    plt.close("all")
    assert (weights(learn) == before).all()
    return found._fields, [float(v) for v in learn.recorder.lrs][:20]


@row
def a_schedule_of_ones_own(side):
    learn = side.learn()
    sched = {"lr": combine_scheds([.5, .5], [SchedCos(.01, .1), SchedCos(.1, .01)])}
    learn.fit(3, cbs=ParamScheduler(sched))
    return recorded(learn), learn.recorder.hps["lr"]


# prediction

@row
def validate(side): return list(side.learn().validate())


@row
def validate_training_set(side):
    learn = side.learn()
    return list(learn.validate(ds_idx=0)), list(learn.validate(dl=learn.dls.valid))


@row
def get_preds(side): return side.learn().get_preds()
@row
def get_preds_of_the_training_set(side): return side.learn().get_preds(ds_idx=0)
@row
def get_preds_with_loss(side): return side.learn().get_preds(with_loss=True)
@row
def get_preds_decoded(side): return side.learn().get_preds(with_decoded=True)
@row
def get_preds_with_input(side): return side.learn().get_preds(with_input=True)
@row
def get_preds_as_logits(side): return side.learn().get_preds(act=noop)
@row
def get_preds_in_order_of_the_loader(side): return side.learn().get_preds(reorder=False)
@row
def get_preds_of_nothing_but_the_loss(side):
    return side.learn().get_preds(with_preds=False, with_targs=False, with_loss=True)[2]


@row
def get_preds_to_files(side):
    (folder := side.path / "preds").mkdir()
    (side.path / "targs").mkdir()
    side.learn().get_preds(save_preds=folder, save_targs=side.path / "targs")
    return [torch.load(f, weights_only=False) for f in sorted(folder.iterdir())]


@row
def get_preds_within_a_context(side):
    learn = side.learn()
    with learn.no_logging(), learn: return learn.get_preds(inner=True)


@row
def get_preds_of_files(side):
    learn = side.learn()
    return learn.get_preds(dl=learn.dls.test_dl(listed(side.pictures)[:5]))[0]


@row
def get_preds_of_labelled_files(side):
    learn, files = side.learn(), listed(side.pictures)[-7:]
    if side.name == "ours": files = list(range(N_TRAIN + N_TEST - 7, N_TRAIN + N_TEST))
    return learn.get_preds(dl=learn.dls.test_dl(files, with_labels=True))


@row
def get_preds_of_batches(side):
    learn = side.learn()
    return learn.get_preds(dl=[learn.dls.valid.one_batch()])


@row
def get_preds_in_threads(side):
    learn = side.learn()
    with ThreadPool(1) as pool: return pool.apply(learn.get_preds)


@row
def get_preds_with_dropout(side):
    learn = side.learn()
    learn.model = nn.Sequential(learn.model, nn.Dropout(.5))
    first, second = (learn.get_preds(cbs=MCDropoutCallback())[0] for _ in range(2))
    return first.shape, torch.equal(first, second), torch.equal(*(learn.get_preds()[0] for _ in range(2)))


@row
def predict(side):
    name, k, probs = side.learn().predict(listed(side.pictures)[50])
    return name, int(k), probs


@row
def predict_with_input(side):
    x, name, k, probs = side.learn().predict(str(listed(side.pictures)[50]), with_input=True)
    return tuple(x.shape), name, probs


@row
def predict_an_array(side): return side.learn().predict(side.data.x_test[3])[0]


@row
def tta(side): return side.learn().tta(n=2)
@row
def tta_largest(side): return side.learn().tta(n=2, use_max=True)
@row
def tta_of_the_views_alone(side): return side.learn().tta(n=2, beta=None)


@row
def show_results(side):
    side.learn().show_results(max_n=4, shuffle=False)
    return titles()


def titles():
    "Of the figure, which is closed"
    found = [ax.get_title() for ax in plt.gcf().axes]
    plt.close("all")
    assert found
    return found


# interpretation

def said(f) -> str:
    "What `f` prints"
    with redirect_stdout(io.StringIO()) as out: f()
    assert out.getvalue()
    return out.getvalue()


def interpretation(side, cls=ClassificationInterpretation, ds_idx=1):
    return cls.from_learner(side.learn(), ds_idx)


@row
def interpretation_top_losses(side): return interpretation(side, Interpretation).top_losses(5)[0]
@row
def interpretation_items(side): return len(interpretation(side).top_losses(3, items=True)[2])
@row
def interpretation_confusion_matrix(side): return interpretation(side).confusion_matrix()
@row
def interpretation_most_confused(side): return interpretation(side).most_confused()


@row
def interpretation_report(side):            # behind its bar
    return said(interpretation(side).print_classification_report).split("\r")[-1].split()


@row
def interpretation_of_single_pictures(side):
    inputs, probs, targs, decoded, losses = interpretation(side)[[3, 1]]
    return inputs, probs, targs, decoded, losses


@row
def interpretation_plot_top_losses(side):
    interpretation(side).plot_top_losses(4)
    return titles()


@row
def interpretation_plot_top_losses_of_the_training_set(side):
    interpretation(side, ds_idx=0).plot_top_losses(4, largest=False)
    return titles()


@row
def interpretation_show_results(side):
    interpretation(side).show_results([1, 2])
    return titles()


@row
def interpretation_show_results_of_the_training_set(side):
    interpretation(side, ds_idx=0).show_results([1, 2])
    return titles()


@row
def interpretation_plot_confusion_matrix(side):
    interpretation(side).plot_confusion_matrix(normalize=True)
    return titles()


# the Learner

@row
def save_and_load(side):
    learn = side.learn()
    path = learn.save("a")
    fitted(side, learn=learn)
    return path.name, learn.load("a").get_preds()


@row
def save_and_load_with_the_optimiser(side):
    learn = side.learn()
    fitted(side, learn=learn)
    learn.save("a", with_opt=True)
    again = side.learn().load("a", with_opt=True, weights_only=False)
    assert (weights(again) == weights(learn)).all()
    return fitted(side, learn=again)


@row
def export_and_load_learner(side):
    learn = side.learn()
    learn.fit(1)
    expected = learn.get_preds()[0]
    learn.export("a.pkl")
    again = load_learner(side.path / "a.pkl")
    files = listed(side.pictures)[N_TRAIN:]
    assert torch.allclose(again.get_preds(dl=again.dls.test_dl(files))[0], expected, atol=1e-5)
    return again.predict(files[0])[0], len(again.dls.train_ds), fitted(side, learn=learn)


@row
def export_of_a_frozen_net(side):
    learn = side.learn()
    learn.freeze()
    learn.fit(1)
    learn.export("a.pkl")
    return [len(ps) for ps in learn.opt.param_lists], load_learner(side.path / "a.pkl").dls.vocab


@row
def copy_of_a_learner(side):
    learn = side.learn()
    learn.fit(1)
    twin = deepcopy(learn)
    return fitted(side, learn=learn), fitted(side, learn=twin)


@row
def pickle_of_a_learner(side):
    learn = side.learn()
    learn.fit(1)
    twin = pickle.loads(pickle.dumps(learn))
    return weights(twin), twin.opt.hypers[-1]["lr"], type(twin) is type(learn)


@row
def summary(side):
    text = str(side.learn().summary())
    return [line for line in text.splitlines() if "params" in line], "TrainEvalCallback" in text


@row
def show_training_loop(side):     # the names of callbacks differ, the frame of the loop must not
    return sum("Start" in line for line in said(side.learn().show_training_loop).splitlines())


@row
def added_and_removed_callbacks(side):
    learn, cb = side.learn(), Callback()
    with learn.added_cbs(cb): inside = cb in learn.cbs
    learn.add_cbs([cb])
    with learn.removed_cbs([cb]): outside = cb in learn.cbs
    learn.remove_cbs([cb])
    learn.add_cb(TerminateOnNaNCallback).remove_cb(TerminateOnNaNCallback)
    return inside, outside, cb in learn.cbs, hasattr(learn, "terminate_on_na_n")


@row
def quiet_contexts(side):
    learn = side.learn()
    with learn.no_bar(), learn.no_logging(), learn.no_mbar():
        inside = learn.logger is noop, learn.create_mbar, fitted(side, learn=learn)
    return inside, learn.logger is print, learn.create_mbar


@row
def loss_not_reduced(side):
    learn = side.learn()
    x, y = learn.dls.valid.one_batch()
    with learn.loss_not_reduced(): return learn.loss_func(learn.model.eval()(x), y)


@row
def ordered_callbacks(side): return side.learn().ordered_cbs("after_cancel_fit")


@row
def an_error_in_a_callback_names_it(side):
    class Breaks(Callback):
        def after_epoch(self): raise ValueError("broken")
    with pytest.raises(ValueError, match="broken") as error: side.learn().fit(1, cbs=Breaks())
    told = " ".join([str(error.value), *getattr(error.value, "__notes__", [])])
    return "Breaks" in told, "after_epoch" in told


@row
def metrics_of_all_kinds(side):
    metrics = [accuracy, error_rate, F1Score(average="macro"), partial(top_k_accuracy, k=2)]
    learn = side.learn(metrics=metrics)
    learn.fit(1)
    return recorded(learn), list(learn.recorder.metric_names)


@row
def metrics_that_are_set_later(side):
    learn = side.learn()
    learn.metrics = [error_rate]
    return list(learn.validate())


@row
def other_losses(side):
    losses = LabelSmoothingCrossEntropy(), FocalLossFlat(gamma=2.), nn.CrossEntropyLoss()
    return [fitted(side, learn=side.learn(loss_func=loss)) for loss in losses]


@row
def an_optimiser_of_fastai(side): return fitted(side, learn=side.learn(opt=partial(SGD, mom=.9)))


@row
def an_optimiser_of_torch(side):
    return fitted(side, lr=.01, learn=side.learn(opt=partial(OptimWrapper, opt=torch.optim.AdamW)))


@row
def an_optimiser_that_is_built(side):
    net = first_net()
    opt = OptimWrapper(opt=torch.optim.SGD(net.parameters(), lr=.1))
    return fitted(side, learn=side.learn(opt=opt, net=net))


@row
def plot_loss(side):
    learn = side.learn()
    learn.fit(3, .1)
    ax = learn.recorder.plot_loss(skip_start=0, show_epochs=True)
    lines = [line.get_ydata().tolist() for line in ax.lines if line.get_label() in ("train", "valid")]
    plt.close("all")
    return [list(map(float, y)) for y in lines]


@row
def plot_sched(side):
    learn = side.learn()
    learn.fit_one_cycle(3, .1)
    learn.recorder.plot_sched()
    lines = [ax.lines[0].get_ydata().tolist() for ax in plt.gcf().axes]
    plt.close("all")
    return lines


# ready-made callbacks

@row
def to_fp16(side): return fitted(side, learn=side.learn().to_fp16())
@row
def to_bf16(side): return fitted(side, learn=side.learn().to_bf16())
@row
def to_fp32(side): return fitted(side, learn=side.learn().to_fp16().to_fp32())
@row
def to_channelslast(side): return fitted(side, learn=side.learn().to_channelslast(use_amp=False))
@row
def channels_last(side): return fitted(side, cbs=ChannelsLast())
@row
def gradient_clip(side): return fitted(side, cbs=GradientClip(.01))


@row
def gradient_accumulation(side): return fitted(side, 4, cbs=GradientAccumulation(2 * N_TRAIN))


@row
def bn_freeze(side):
    learn = side.learn(train_bn=False)
    learn.freeze()
    before = learn.model.layer1[1].running_mean.clone()
    learn.fit(1, cbs=BnFreeze())
    return (learn.model.layer1[1].running_mean == before).all().item()


@row
def short_epochs(side):
    learn = side.learn(dls=side.dls(bs=8))
    learn.fit(2, cbs=ShortEpochCallback(pct=.5, short_valid=False))
    return len(learn.recorder.losses)


@row
def terminate_on_nan(side):
    learn = side.learn()
    learn.fit(5, 1e20, cbs=TerminateOnNaNCallback())
    return len(learn.recorder.losses) < 5


@row
def early_stopping(side):
    learn = side.learn()
    learn.fit(9, cbs=EarlyStoppingCallback("accuracy", min_delta=2., patience=2))
    return len(learn.recorder.values)


@row
def save_model_at_its_best(side):
    learn = side.learn()
    learn.fit(3, cbs=SaveModelCallback(fname="best"))
    best = min(v[1] for v in learn.recorder.values)
    assert learn.validate()[0] == pytest.approx(best, abs=1e-5)
    return best, (side.path / "models" / "best.pth").exists()


@row
def save_model_at_the_end(side):
    learn = side.learn()
    learn.fit(2, cbs=SaveModelCallback(at_end=True, fname="last"))
    return weights(side.learn().load("last"))


@row
def save_model_every_epoch(side):
    side.learn().fit(2, cbs=SaveModelCallback(every_epoch=True, with_opt=True))
    return sorted(p.name for p in (side.path / "models").iterdir())


@row
def reduce_lr_on_plateau(side):
    learn = side.learn(opt=partial(SGD, mom=.9))
    learn.fit(3, .1, cbs=ReduceLROnPlateau("valid_loss", min_delta=9., patience=1))
    return recorded(learn), learn.opt.hypers[-1]["lr"]


@row
def csv_logger(side):
    learn = side.learn()
    learn.fit(2, cbs=CSVLogger("log.csv"))
    lines = [line.split(",")[:-1] for line in (side.path / "log.csv").read_text().splitlines()]
    assert learn.logger is print or side.name == "stock"
    return lines[0], [[float(v) for v in line] for line in lines[1:]]


@row
def show_graph(side): return fitted(side, cbs=ShowGraphCallback())


@row
def progress(side):
    learn = side.learn()
    learn.remove_cb(learn.progress)
    return fitted(side, learn=learn.add_cb(ProgressCallback()))


@row
def tensorboard(side):
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    opt = partial(SGD, mom=.9) if side.name == "stock" else None      # stock stops at the None of torch's SGD
    learn = side.learn(opt=opt)
    learn.fit(2, .1, cbs=TensorBoardCallback(log_dir=side.path / "board", trace_model=False, log_preds=True))
    board = EventAccumulator(str(side.path / "board")).Reload()
    shown = {"train_loss", "valid_loss", "accuracy", "lr_0", "mom_2"}
    steps = {tag: [e.step for e in board.Scalars(tag)] for tag in shown}
    return steps, board.Scalars("train_loss")[0].value, board.Tags()["images"]


@row
def tensorboard_with_the_graph_of_the_net(side):
    from fastai.callback.tensorboard import TensorBoardCallback
    opt = partial(SGD, mom=.9) if side.name == "stock" else None
    side.learn(opt=opt).fit(1, cbs=TensorBoardCallback(log_dir=side.path / "board", log_preds=False))
    return len(list((side.path / "board").iterdir()))


@row
def every_hyper_is_a_number(side):
    "As Weights & Biases and Comet log them"
    opt = partial(SGD, mom=.9) if side.name == "stock" else None
    learn, seen = side.learn(opt=opt), []
    def log(self): seen.extend(math.isfinite(float(v)) for h in self.opt.hypers for v in h.values())
    learn.fit(1, cbs=Callback(after_batch=log))
    return all(seen) and len(seen) > 5


def mixed(side, mix):
    learn = side.learn()
    before = learn.loss_func
    learn.fit(2, cbs=mix(.5))
    losses = [float(v) for v in learn.recorder.losses]
    assert losses != pytest.approx(recorded_without(side)) and all(map(math.isfinite, losses))
    return len(losses), learn.loss_func is before


def recorded_without(side): return fitted(side)[0]


@row
def mixup(side): return mixed(side, MixUp)
@row
def cutmix(side): return mixed(side, CutMix)


@row
def activation_stats(side):
    learn, stats = side.learn(), ActivationStats(with_hist=True)
    learn.fit(2, .1, cbs=stats)
    return [[float(v) for v in values] for values in stats.layer_stats(-1)]


@row
def hooks_of_a_callback(side):
    learn, cb = side.learn(), HookCallback(hook=lambda m, i, o: o.shape)
    learn.fit(1, cbs=cb)
    return cb.hooks.stored, len(learn.model.fc._forward_hooks)


@row
def hook_an_output(side):
    learn = side.learn()
    with hook_output(learn.model.layer3) as hook: learn.validate()
    return hook.stored


@row
def fetch_predictions(side):
    learn = side.learn()
    learn.fit(1, cbs=(cb := FetchPredsCallback()))
    return cb.preds


@row
def collect_data(side):
    learn = side.learn()
    learn.fit(1, cbs=(cb := CollectDataCallback()))
    return len(cb.data), [tuple(o[0][0].shape) for o in cb.data]


@row
def a_callback_of_one_function(side):
    @before_batch_cb
    def darken(self, xb, yb): return (xb[0] * .5,), yb
    return fitted(side, cbs=darken)


@row
def a_callback_that_looks_at_everything(side):
    seen = {}
    def look(self):
        seen[self.training] = (type(self.learn.loss_func).__name__ != "", tuple(self.x.shape), self.n_iter,
                               self.pct_train, self.train_iter, float(self.loss))
    side.learn().fit(2, .1, cbs=Callback(after_batch=look))
    return seen


# DataBlock and DataLoaders

@row
def sizes(side):
    dls = side.dls(bs=10)
    each = [(len(dl), dl.n, dl.bs, dl.drop_last, dl.shuffle) for dl in dls.loaders]
    return each, dls.n_inp, len(dls), get_c(dls)


@row
def vocabulary(side): return list(side.dls().vocab), side.dls().c, list(side.dls().train_ds.vocab)


@row
def valid_batch(side):
    x, y = side.dls().valid.one_batch()
    return x, y, type(x) is TensorImage, type(y) is TensorCategory


@row
def train_batch(side):
    x, y = side.dls().one_batch()
    return x.square().mean(), y.sort()[0]


@row
def items_of_a_loader(side):
    dls = side.dls()
    return [len(L(dl.items)[[1, 2]]) for dl in dls.loaders], [len(L(dl.items)) for dl in dls.loaders]


@row
def items_of_a_dataset(side):
    x, y = side.dls().valid_ds[3]
    return np.array(x), y, len(side.dls().train_ds.items)


@row
def show_batch(side):
    side.dls().valid.show_batch(max_n=6)
    return titles()


@row
def show_batch_unique(side):
    dls = side.dls()
    dls.show_batch(unique=True, max_n=4)
    found = titles()
    assert len(found) >= 4 and len({t for t in found if t}) == 1
    return dls.one_batch()[1].sort()[0]       # and the loader is afterwards as before


@row
def show_batch_of_a_batch(side):
    dls = side.dls()
    dls.show_batch(dls.valid.one_batch(), max_n=3, nrows=1)
    return titles()


@row
def decode_batch(side):
    dls = side.dls()
    x, y = dls.valid.decode(dls.valid.one_batch())
    return [name for _, name in dls.decode_batch(dls.valid.one_batch(), max_n=5)], y, x.min() >= 0


@row
def loader_of_new_pictures(side):
    dl = side.dls().test_dl(listed(side.pictures)[:5], bs=2)
    return [b[0] for b in dl], len(dl), dl.n


@row
def new_loaders(side):
    dl = side.dls().valid
    small, plain = dl.new(bs=5), side.dls().train.new(shuffle=False, drop_last=False)
    return [len(y) for _, y in small], plain.one_batch()


@row
def loader_of_chosen_pictures(side):
    dl = side.dls().valid
    return next(iter(dl.new(get_idxs=lambda: [3, 1, 4], n=3, bs=3)))


@row
def empty_loaders(side): return [len(dl.dataset) for dl in side.dls().new_empty().loaders]


@row
def loaders_moved(side):
    dls = side.dls().cpu().to("cpu")
    return str(dls.device), str(dls.one_batch()[0].device)


@row
def loaders_of_loaders(side):
    dls = DataLoaders(*side.dls().loaders, path=side.path)
    return fitted(side, learn=side.learn(dls=with_vocab(dls)))


def with_vocab(dls):
    dls.data = None
    return dls


@row
def copies_and_pickles_of_loaders(side):
    dls = side.dls()
    assert torch.equal(deepcopy(dls.valid).one_batch()[0], dls.valid.one_batch()[0])
    empty = pickle.loads(pickle.dumps(dls.new_empty()))
    return list(empty.vocab), empty.test_dl(listed(side.pictures)[:2]).one_batch()[0]


@row
def loaders_in_threads(side):
    dls = side.dls()
    with ThreadPool(2) as pool: return [b[1] for b in pool.map(lambda _: dls.valid.one_batch(), range(4))]


@row
def transforms_added_later(side):
    dls = side.dls()
    dls.add_tfms([DarkenBatch()], "after_batch")
    return dls.valid.one_batch()[0]


class DarkenBatch(Transform):
    order = 200
    def encodes(self, x: TensorImage): return x * .5


@row
def three_splits(side):
    k, block = list(range(N_TRAIN + N_TEST)), side.block()
    block.splitter = lambda items: [k[:N_TRAIN], k[N_TRAIN:-8], k[-8:]]
    dls = block.dataloaders(side.source, bs=N_TRAIN, num_workers=0, device="cpu", path=side.path)
    learn = side.learn(dls=dls)
    return len(dls), list(learn.validate(ds_idx=2)), learn.get_preds(ds_idx=2)


@row
def summary_of_a_block(side):
    side.block().summary(side.source, bs=4, num_workers=0)
    return True


@row
def datasets(side):
    dsets = side.block().datasets(side.source)
    return len(dsets.train), len(dsets.valid), [int(dsets.valid[k][1]) for k in range(5)]


@row
def weighted_loaders(side):
    wanted = [float(k == 5) for k in range(N_TRAIN + N_TEST)]
    dls = side.block().weighted_dataloaders(side.source, wanted, bs=8, num_workers=0, device="cpu")
    x, y = dls.one_batch()
    return x, y


@row
def partial_loaders(side):
    block = side.block()
    dls = block.datasets(side.source).partial_dataloaders(
        16, bs=8, after_item=block.item_tfms, after_batch=block.batch_tfms, num_workers=0, device="cpu")
    return len(dls.train), [len(y) for _, y in dls.train], dls.valid.one_batch()


# the table

def agree(a, b):
    "Whether `a` and `b` are the same, numbers to a tolerance"
    if isinstance(a, (tuple, list, L)) or isinstance(b, (tuple, list, L)):
        return len(a) == len(b) and all(map(agree, a, b))
    if isinstance(a, dict): return a.keys() == b.keys() and all(agree(a[k], b[k]) for k in a)
    if isinstance(a, (float, torch.Tensor, np.ndarray)):
        a, b = (torch.as_tensor(v).as_subclass(torch.Tensor).double() for v in (a, b))
        return a.shape == b.shape and torch.allclose(a, b, rtol=2e-3, atol=2e-4)
    return a == b


def test_agreement_tells_values_apart():
    a = {"x": [1., torch.ones(2)], "y": "cat"}
    assert agree(a, deepcopy(a))
    assert not agree(a, {**a, "y": "dog"}) and not agree(a, {**a, "x": [1.01, torch.ones(2)]})
    assert not agree([1.], [1., 2.]) and not agree(torch.ones(2), torch.ones(3))


@pytest.mark.parametrize("f", ROWS, ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore")
def test_ours_does_what_stock_does(f, data, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = []
    for side in (Stock, Ours):
        (path := tmp_path / side.name).mkdir()
        found.append(f(side(data, pictures, path)))
    assert agree(*found), found


LOAD = """
import sys, warnings
warnings.filterwarnings("ignore")
from fastai.learner import load_learner
name, k, probs = load_learner(sys.argv[1]).predict(sys.argv[2])
print(name, *probs.tolist())
"""


@pytest.mark.filterwarnings("ignore")
def test_an_exported_learner_predicts_in_a_fresh_process_that_imports_fastai_alone(data, pictures, tmp_path):
    learn, picture = Ours(data, pictures, tmp_path).learn(), str(listed(pictures)[50])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    name, _, probs = learn.predict(picture)
    learn.export("a.pkl")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "a.pkl"), picture]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert said.split()[-5] == name
    assert list(map(float, said.split()[-4:])) == pytest.approx(probs.tolist(), abs=1e-4)


def test_the_table_is_long_enough(): assert len(ROWS) >= 70 and len({f.__name__ for f in ROWS}) == len(ROWS)
