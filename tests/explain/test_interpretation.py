import csv

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.progress import ProgressCallback
from fastai.interpret import ClassificationInterpretation
from fastai.vision.learner import vision_learner
from sklearn.metrics import accuracy_score, classification_report
from stock import CLASSES, Net, clear, count_calls, items, smooth, stock_dls, stock_learner
from torchvision.models import resnet18

from cifar_fastai.errors import InputError
from cifar_fastai.explain.interpretation import ImageInterpretation
from cifar_fastai.loaders.block import cifar_dataloaders
from cifar_fastai.plots.figures import offscreen
from cifar_fastai.training.learner import cifar_learner


@pytest.fixture(scope="module")
def learn(): return stock_learner()


@pytest.fixture(scope="module")
def interp(learn): return ImageInterpretation.from_learner(learn)


@pytest.fixture(scope="module")
def stock(learn): return ClassificationInterpretation.from_learner(learn)


@pytest.fixture(autouse=True)
def without_windows():
    with offscreen(): yield
    plt.close("all")       # fastai's own


def said(*rows, learn, targs=None):
    "An interpretation of made-up probabilities for the first pictures"
    preds, targs = torch.tensor(rows), torch.tensor(targs)
    losses = -preds[range(len(targs)), targs].log()
    return ImageInterpretation(learn, learn.dls.valid, losses, preds=preds, targs=targs)


def test_after_the_first_pass_nothing_is_predicted_again(capsys):
    learn = stock_learner()
    calls = count_calls(learn.model)
    interp = ImageInterpretation.from_learner(learn)
    assert calls == [8, 8, 7]
    interp.top_losses(), interp.confusion_matrix(), interp.most_confused(), interp.per_class(), interp.rows()
    interp.print_classification_report(), interp.misclassified(), interp.calibration(), interp[[0, 5]]
    interp.plot_top_losses(4), interp.plot_misclassified(4), interp.plot_per_class(), interp.show_results([1])
    assert calls == [8, 8, 7]
    ClassificationInterpretation.from_learner(learn).confusion_matrix()
    assert calls == [8, 8, 7] * 3                                        # fastai's, for comparison


@pytest.mark.parametrize("kwargs", [{}, {"largest": False}, {"k": 5}, {"k": 3, "largest": False}])
def test_top_losses_are_fastais(interp, stock, kwargs):
    (losses, idx), (theirs, their_idx) = interp.top_losses(**kwargs), stock.top_losses(**kwargs)
    torch.testing.assert_close(losses, theirs.as_subclass(torch.Tensor))
    torch.testing.assert_close(interp.losses[their_idx], losses)     # two that are as high may change places
    assert len(set(idx.tolist())) == len(idx)


def test_top_losses_with_smoothing_are_fastais_too():
    learn = stock_learner(loss_func=smooth())
    both = ImageInterpretation, ClassificationInterpretation
    ours, theirs = (cls.from_learner(learn).top_losses(9)[0].as_subclass(torch.Tensor) for cls in both)
    torch.testing.assert_close(ours, theirs)


def test_more_top_losses_than_pictures_are_all_of_them(interp, stock):
    assert len(interp.top_losses(1000)[0]) == 23
    with pytest.raises(RuntimeError): stock.top_losses(1000)


def test_top_losses_can_bring_their_items(interp):
    _, idx, found = interp.top_losses(3, items=True)
    for i, (x, y) in zip(idx.tolist(), found):
        assert (x == items(35)[12 + i][0]).all() and y == items(35)[12 + i][1]


def test_confusion_and_report_are_fastais(interp, stock, capsys):
    assert clear(interp.preds)
    assert (interp.confusion_matrix() == stock.confusion_matrix()).all()
    assert interp.most_confused(2) == stock.most_confused(2) and len(interp.most_confused(2)) > 1
    assert all(type(n) is int for *_, n in interp.most_confused()), "a notebook shows 1, not np.int64(1)"
    interp.print_classification_report()
    report = classification_report(interp.targs, interp.decoded, target_names=CLASSES, zero_division=0)
    assert capsys.readouterr().out == report + "\n"
    assert interp.confusion_matrix().sum() == 23      # `most_confused` clears the diagonal of a copy


def test_accuracy_and_loss_are_means(interp):
    assert interp.accuracy == accuracy_score(interp.targs, interp.decoded) and 0 < interp.accuracy < 1
    assert interp.loss == pytest.approx(interp.losses.mean().item()) and len(interp) == 23


def test_predicting_with_views_keeps_the_plain_predictions_beside_them(learn, interp):
    both = ImageInterpretation.from_learner(learn, tta=True)
    torch.testing.assert_close(both.preds, interp.preds)
    assert not torch.allclose(both.tta, both.preds, atol=.01) and interp.accuracy_tta is None
    assert both.accuracy_tta == accuracy_score(both.targs, both.tta.argmax(1))


def test_mistakes_come_in_the_order_asked_for(learn):
    rows = [.9, .1, 0., 0.], [.1, .9, 0., 0.], [.4, .3, .2, .1], [.6, .2, .2, 0.]
    interp = said(*rows, targs=[1, 1, 1, 2], learn=learn)       # wrong: 0 (loss 2.3), 2 (1.2), 3 (1.6)
    assert interp.misclassified().tolist() == [0, 3, 2]
    assert interp.misclassified(by="confidence").tolist() == [0, 3, 2]
    assert interp.misclassified(2, by="index").tolist() == [0, 2]
    assert interp.misclassified(99).tolist() == [0, 3, 2]
    with pytest.raises(InputError, match="Did you mean loss"): interp.misclassified(by="los")


def test_surest_mistakes_are_not_the_worst_losses(learn):
    interp = said([.6, .0001, .2, .2], [.7, .3, 0., 0.], targs=[1, 1], learn=learn)
    assert interp.misclassified().tolist() == [0, 1]
    assert interp.misclassified(by="confidence").tolist() == [1, 0]


def test_a_model_without_mistakes_has_none_and_says_so(learn):
    interp = said([.9, .1, 0., 0.], [0., 1., 0., 0.], targs=[0, 1], learn=learn)
    assert interp.misclassified(5).tolist() == [] and interp.most_confused() == [] and interp.accuracy == 1
    for fig in (interp.plot_misclassified(), interp.plot_gradcam([])):
        assert fig.axes[0].texts[0].get_text() == "No mistakes: all 2 pictures are classified correctly."


def test_without_mistakes_maps_are_of_the_largest_losses(learn):
    interp = said([.9, .1, 0., 0.], [.3, .7, 0., 0.], [.2, .8, 0., 0.], targs=[0, 1, 1], learn=learn)
    fig = interp.plot_gradcam(2, "layer3", caption="of a net")
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    worst = [f"pred {interp.predicted_label(i)}" for i in (1, 2)]
    assert [t for t in titles if t.startswith("pred")] == worst
    assert sum(t.startswith("why") for t in titles) == 2 and not any(t.startswith("where") for t in titles)
    said_below = " ".join(t.get_text() for t in fig.texts)
    assert "all 3 pictures are classified correctly. These have the largest losses" in said_below
    assert "of a net" in said_below


def test_a_class_without_pictures_has_no_figures_but_breaks_none(learn, capsys):
    interp = said([.9, .1, 0., 0.], [.2, .8, 0., 0.], targs=[0, 0], learn=learn)
    table = interp.per_class()
    assert table["n"].tolist() == [2, 0, 0, 0] and table["accuracy"].isna().tolist() == [False] + [True] * 3
    assert table["accuracy"][0] == .5 and table["precision"][1] == 0
    interp.print_classification_report(), interp.plot_per_class(), interp.plot_calibration()
    shares = [t.get_text() for t in interp.plot_confusion_matrix(normalize=True).axes[0].texts]
    assert shares == ["0.50", "0.50"] + ["0.00"] * 14


def test_two_classes_and_a_single_picture():
    learn = stock_learner(stock_dls(12, 1, classes=("no", "yes")))
    interp = ImageInterpretation.from_learner(learn)
    assert interp.confusion_matrix()[interp.targs[0], interp.decoded[0]] == 1
    assert interp.rows()["predicted"][0] == ("no", "yes")[interp.decoded[0]]
    assert len(interp.plot_top_losses(5).axes) == 1


def test_training_set_is_judged_as_it_looks(learn):
    interp = ImageInterpretation.from_learner(learn, ds_idx=0)
    assert len(interp) == 12
    np.testing.assert_allclose(interp.picture(5), items(35)[5][0] / 255, atol=1e-6)


def test_indexing_gives_what_fastais_gives_without_a_pass(interp, stock):
    for idxs in ([7, 2], 7, torch.tensor([7, 3])):
        for ours, theirs in zip(interp[idxs], stock[idxs], strict=True):
            torch.testing.assert_close(ours.as_subclass(torch.Tensor), theirs.as_subclass(torch.Tensor))


def test_rows_name_what_was_said_and_survive_csv(tmp_path):
    names = ('a,"b"', "größe\n", "=1+1", "猫")
    interp = ImageInterpretation.from_learner(stock_learner(stock_dls(classes=names)))
    path = interp.to_csv(tmp_path / "predictions.csv")
    with open(path, newline="", encoding="utf-8") as f: rows = list(csv.DictReader(f))
    assert list(rows[0]) == ["index", "true", "predicted", "confidence", "loss"] and len(rows) == 23
    for i, row in enumerate(rows):
        assert row["index"] == str(i) and row["true"] == names[i % 4]
        assert row["predicted"] == names[interp.decoded[i]]
        assert float(row["confidence"]) == pytest.approx(interp.preds[i].max().item(), rel=1e-5)
        assert float(row["loss"]) == pytest.approx(interp.losses[i].item(), rel=1e-5)
    pd.testing.assert_series_equal(pd.read_csv(path)["index"], pd.Series(range(23)), check_names=False)


def test_confusion_plot_writes_counts_or_shares(interp):
    cm = interp.confusion_matrix()
    texts = lambda **kwargs: [t.get_text() for t in interp.plot_confusion_matrix(**kwargs).axes[0].texts]
    assert texts() == [str(v) for v in cm.flat] and texts(plot_txt=False) == []
    assert texts(normalize=True, norm_dec=1) == [f"{v:.1f}" for v in (cm / cm.sum(1, keepdims=True)).flat]
    fig = interp.plot_confusion_matrix(title="T", figsize=(3, 3), dpi=60)
    assert fig.axes[0].get_title() == "T" and fig.get_size_inches().tolist() == [3, 3] and fig.dpi == 60


def test_a_model_for_other_classes_is_refused():
    with pytest.raises(InputError, match="7 outputs, the data 4 classes"):
        ImageInterpretation.from_learner(stock_learner(model=Net(7)))


def test_our_own_learner_and_loaders_are_explained():
    dls = cifar_dataloaders("digits", bs=64, limit=100, num_workers=0, device="cpu")
    learn = cifar_learner(dls, Net(10), precision="fp32")
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, ProgressCallback)])
    interp = ImageInterpretation.from_learner(learn)
    torch.testing.assert_close(interp.preds, learn.get_preds()[0].as_subclass(torch.Tensor))
    np.testing.assert_allclose(interp.pictures([3, 1]), dls.data.x_test[[3, 1]] / 255, atol=1e-6)
    train = ImageInterpretation.from_learner(learn, ds_idx=0)
    np.testing.assert_allclose(train.picture(7), dls.data.x_train[7] / 255, atol=1e-6)
    assert train.targs.tolist() == dls.data.y_train.tolist() and dls.train.epoch == 0


def test_fastais_vision_learner_is_explained_too():
    learn = vision_learner(stock_dls(), resnet18, pretrained=False)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    interp = ImageInterpretation.from_learner(learn)
    torch.testing.assert_close(interp.preds, learn.get_preds()[0].as_subclass(torch.Tensor))
    np.testing.assert_allclose(interp.picture(0), items(35)[12][0] / 255, atol=1e-6)
    assert {name: m.shape for name, m in interp.gradcam([0, 1], layer="0.5").items()} == {"0.5": (2, 16, 16)}
