"""What is recorded is what fastai records."""
from contextlib import suppress
from copy import deepcopy
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.interpret import ClassificationInterpretation
from fastai.learner import AvgMetric, Learner, Recorder
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import F1Score, accuracy, top_k_accuracy
from fastai.optimizer import OptimWrapper
from tiny import tiny_net

from cifar_fastai.training.records import DeviceRecorder, mean_metric

TOP2 = partial(top_k_accuracy, k=2)
METRICS = [accuracy, TOP2, F1Score(average="macro")]


SGD = partial(OptimWrapper, opt=torch.optim.SGD, momentum=.9, nesterov=True, weight_decay=5e-4)


def stock(dls, net, recorder=Recorder, opt=SGD):
    learn = Learner(dls, net, CrossEntropyLossFlat(), metrics=METRICS, opt_func=opt, moms=(.9, .9, .9))
    learn.remove_cbs([learn.progress, learn.recorder])
    return learn.add_cb(recorder())


def record(learn):
    for dl in learn.dls.loaders: dl.set_epoch(0)
    with learn.no_logging(): learn.fit(2, .05)
    rec = learn.recorder
    return {"losses": [float(v) for v in rec.losses], "lrs": rec.lrs, "iters": rec.iters,
            "names": list(rec.metric_names), "smooth": float(learn.smooth_loss),
            "values": [list(map(float, row)) for row in rec.values],
            "final": list(map(float, learn.final_record))}


def same(a, b):
    rows = zip(a.pop("values"), b["values"], strict=True)
    close = all(x == pytest.approx(y, abs=1e-6) for x, y in rows)
    return close and all(a[k] == (b[k] if k == "names" else pytest.approx(b[k], abs=1e-6)) for k in a)


def test_losses_rates_and_metrics_are_the_stock_recorders(learner):
    ours = learner(aug=None, metrics=METRICS)
    assert type(ours.recorder) is DeviceRecorder
    theirs = stock(ours.dls, deepcopy(ours.model), opt=ours.opt_func)   # the same arithmetic
    theirs.wd = ours.wd
    ours, theirs = record(ours), record(theirs)
    assert len(theirs["losses"]) == 10 and len(theirs["values"][0]) == 5
    assert same(dict(ours), theirs)
    theirs["values"][1][2] += 1e-4
    assert not same(dict(ours), theirs), "the control can fail"


def test_it_takes_the_place_of_the_stock_recorder_on_a_stock_learner(learner):
    dls = learner(aug=None).dls
    torch.manual_seed(0)
    first = tiny_net(4)
    second = tiny_net(4)
    second.load_state_dict(first.state_dict())
    assert same(record(stock(dls, first, DeviceRecorder)), record(stock(dls, second)))


def test_training_metrics_are_recorded_if_asked_for(learner):
    def values(recorder):
        learn = learner(aug=None)
        learn.remove_cb(learn.recorder)
        learn.add_cb(recorder(train_metrics=True))
        return record(learn)
    ours = values(DeviceRecorder)
    assert same(ours, values(Recorder)) and "train_accuracy" in ours["names"]


def test_a_plain_mean_is_taken_on_the_device_and_other_metrics_are_left_alone():
    f1 = F1Score()
    assert mean_metric(f1) is f1 and isinstance(mean_metric(AvgMetric(accuracy)), AvgMetric)
    assert [mean_metric(AvgMetric(m)).name for m in (accuracy, TOP2)] == ["accuracy", "top_k_accuracy"]


def test_metrics_that_are_set_later_are_recorded_too(learner):
    learn = learner(metrics=[])
    learn.metrics = accuracy
    learn.fit(1)
    assert learn.recorder.metric_names[-2] == "accuracy" and len(learn.recorder.values[0]) == 3


def test_an_empty_mean_is_none():
    metric = mean_metric(AvgMetric(accuracy))
    metric.reset()
    assert metric.value is None


LOOKS = {"get_preds": lambda learn: learn.get_preds(), "validate": lambda learn: learn.validate(),
         "tta": lambda learn: learn.tta(n=1), "predict": lambda learn: learn.predict(IMAGE),
         "interpretation": ClassificationInterpretation.from_learner,
         "summary": lambda learn: learn.summary(),
         "show_results": lambda learn: learn.show_results(), "failing": lambda learn: fails(learn)}
IMAGE = np.zeros((16, 16, 3), np.uint8)


def fails(learn):
    def stop(self): raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError): learn.validate(cbs=Callback(after_pred=stop))


@pytest.mark.parametrize("look", LOOKS)
def test_what_a_fit_recorded_stays_until_the_next_one(learner, look):
    learn = learner()
    with learn.no_bar():
        learn.fit_one_cycle(2, .1)
        before = {k: list(getattr(learn.recorder, k)) for k in ("losses", "lrs", "iters", "values")}
        LOOKS[look](learn)
        assert {k: list(getattr(learn.recorder, k)) for k in before} == before and len(before["losses"]) == 10
        assert len(learn.recorder.plot_loss().lines[0].get_ydata()) == 5
        plt.close("all")
        learn.fit(1)
    assert len(learn.recorder.losses) == 5, "the next fit begins anew"


def test_a_validation_says_what_it_measured_also_before_any_fit(learner):
    learn = learner()
    first = learn.validate()
    learn.fit(1)
    learn.recorder.values[-1][0] = 99.
    assert len(first) == 2 and learn.validate()[0] < 9 and learn.final_record[0] < 9


def test_a_range_test_shows_its_own_losses(learner):
    learn = learner()
    with learn.no_bar():
        learn.fit(1)
        learn.lr_find(num_it=30, stop_div=False, show_plot=False)
        learn.validate()
    assert len(learn.recorder.losses) == 30 and learn.recorder.lrs[-1] > 5


@pytest.mark.parametrize("end", [CancelFitException, KeyboardInterrupt])
def test_losses_are_fetched_also_where_a_fit_ends_within_an_epoch(learner, monkeypatch, end):
    "On a GPU `plot_loss` would fail otherwise"
    class Enough(Callback):
        order = Recorder.order + 1
        def after_batch(self):
            if self.training and self.iter == 2: raise end
    fetch, lengths = DeviceRecorder.fetch, []
    monkeypatch.setattr(DeviceRecorder, "fetch", lambda self: (fetch(self), lengths.append(len(self.losses))))
    learn = learner()
    with suppress(KeyboardInterrupt): learn.fit(2, cbs=Enough())
    assert len(learn.recorder.losses) == 3 == lengths[-1]
