"""Small callbacks, each the size of its idea."""
import io
import sys

import pytest
import torch
from fastai.callback.core import Callback, CancelValidException
from fastai.callback.progress import CSVLogger
from fastai.callback.training import ShortEpochCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner, Metric
from fastai.metrics import F1Score, accuracy, error_rate
from stock import Net, stock_dls
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cifar_fastai.checkpoints.checkpoint import Checkpoint
from cifar_fastai.training.callbacks import EpochSeed, EpochTable, fitting
from cifar_fastai.training.progress import WatchProgress


class Draws(Callback):
    "What torch's generator gives at each training batch"
    run_valid, order = False, 0
    def __init__(self): self.seen = []
    def before_batch(self): self.seen.append(torch.rand(1).item())


def stock_learner(*cbs):
    learn = Learner(stock_dls(), Net(), nn.CrossEntropyLoss(), cbs=cbs, lr=1e-3)
    return learn.remove_cb(learn.progress)


def draws(learn, *epochs):
    cb = Draws()
    with learn.no_logging():
        for n in epochs:
            torch.manual_seed(len(cb.seen))
            learn.fit(n, cbs=cb)
    return cb.seen


# EpochSeed

def test_draws_depend_on_seed_epoch_and_batch_alone_on_a_stock_learner_too():
    whole = draws(stock_learner(EpochSeed(3)), 4)
    assert draws(stock_learner(EpochSeed(3)), 1, 3) == whole and len(set(whole)) == 4
    assert not set(draws(stock_learner(EpochSeed(4)), 4)) & set(whole)
    assert draws(stock_learner(), 4) != draws(stock_learner(), 1, 3), "the control"


def test_the_count_of_epochs_is_remembered_and_recalled():
    first, second = EpochSeed(3), EpochSeed(3)
    whole = draws(stock_learner(first), 2, 2)
    assert first.state_dict() == {"done": 4}
    second.load_state_dict({"done": 2})
    assert draws(stock_learner(second), 2) == whole[2:]


# which loop is a fit

class Asks(Callback):
    def __init__(self): self.said = []
    def before_fit(self): self.said.append(fitting(self.learn))


def test_a_fit_is_told_from_the_other_loops(learner):
    learn, asks = learner(), Asks()
    learn.add_cb(asks)
    learn.fit(1), learn.lr_find(num_it=40, show_plot=False), learn.validate(), learn.get_preds(), learn.tta()
    with pytest.raises(ZeroDivisionError): learn.fit(1, cbs=Callback(before_epoch=lambda self: 1 / 0))
    learn.validate()
    assert asks.said == [True, False, False, False, False, True, False]


def test_views_of_a_learner_that_was_never_fitted_are_no_fit(learner, capsys):
    learn, asks = learner(), Asks()
    learn.logger = print
    learn.add_cb(asks)
    learn.tta()
    assert asks.said and not any(asks.said) and "epoch" not in capsys.readouterr().out


def test_on_a_stock_learner_too_but_for_tta():
    asks = Asks()
    learn = stock_learner(asks)
    with learn.no_logging(): learn.fit(1), learn.validate(), learn.get_preds()
    assert asks.said == [True, False, False]


# the table of epochs

def test_the_table_has_a_line_an_epoch_and_nothing_else_is_printed(learner, capsys):
    learn = learner(lr=.05)
    learn.logger = print
    learn.fit_one_cycle(2, .1)
    head, first, second = capsys.readouterr().out.splitlines()
    loss, valid, accuracy = learn.recorder.values[1]
    assert head.split() == ["epoch", "train", "loss", "valid", "loss", "accuracy", "rate", "time"]
    assert second.split()[:4] == ["2/2", f"{loss:.4f}", f"{valid:.4f}", f"{accuracy:.2%}"]
    assert first.split()[0] == "1/2" and float(first.split()[4]) == pytest.approx(.1, rel=.1)
    assert len({len(line) for line in (head, first, second)}) == 1, "in columns"
    assert learn.logger is print


def test_only_a_fit_that_is_not_silenced_is_tabulated(learner, capsys):
    learn = learner()
    learn.logger = print
    learn.validate(), learn.get_preds(), learn.lr_find(num_it=40, show_plot=False)
    with learn.no_logging(): learn.fit(1)
    assert capsys.readouterr().out == ""
    with learn.no_bar(): learn.fit(1)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_loss_that_is_missing_is_a_dash_and_no_metric_is_no_column(capsys):
    def stop(self): raise CancelValidException
    learn = stock_learner(EpochTable())
    learn.fit(1, cbs=Callback(before_validate=stop))
    head, row = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["epoch", "train", "loss", "valid", "loss", "rate", "time"] and row[2] == "-"
    assert row[1] == f"{learn.recorder.values[0][0]:.4f}", "what was measured stays"


def test_what_was_validated_stays_where_the_training_was_cut_short(learner, capsys):
    learn = learner()
    learn.logger = print
    learn.fit(1, cbs=ShortEpochCallback(.5, short_valid=False))
    row = capsys.readouterr().out.splitlines()[1].split()
    loss, accurate = learn.recorder.values[0]
    assert row[1:4] == ["-", f"{loss:.4f}", f"{accurate:.2%}"]


def test_the_table_shows_every_metric_that_was_asked_for(learner, capsys):
    class Words(Metric):
        value, name = "fair", "verdict"
    learn = learner(metrics=[accuracy, error_rate, F1Score(average="macro"), Words()])
    learn.logger = print
    learn.fit(1)
    head, row = capsys.readouterr().out.splitlines()
    _, _, acc, error, f1, word = learn.recorder.values[0]
    assert head.split()[5:-2] == ["accuracy", "error", "rate", "f1", "score", "verdict"]
    assert row.split()[3:-2] == [f"{acc:.2%}", f"{error:.2%}", f"{f1:.4f}", word] and len(head) == len(row)


@pytest.mark.parametrize("stock", [False, True])
def test_other_callbacks_that_write_rows_do_not_silence_the_next_table(learner, tmp_path, capsys, stock):
    learn = stock_learner(EpochTable()) if stock else learner(path=tmp_path)
    learn.logger, learn.path = print, tmp_path
    learn.fit(1, cbs=CSVLogger())
    with_csv = capsys.readouterr().out.splitlines()
    learn.fit(1)
    assert len(with_csv) == len(capsys.readouterr().out.splitlines()) == 2 and learn.logger is print
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2


def test_lines_go_where_they_are_told(learner):
    learn, lines = learner(), []
    learn.logger, learn.epoch_table.write = print, lines.append
    learn.fit(1)
    assert len(lines) == 2


# the bar

class Terminal(io.StringIO):
    def isatty(self): return True


def test_at_a_terminal_a_live_bar_shows_the_loss_and_is_wiped_out(learner, monkeypatch):
    learn, terminal = learner(), Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    learn.fit(1)
    shown = terminal.getvalue()
    assert "\r" in shown and "100.00%" in shown and f"{learn.recorder.losses[-1]:.4f}" in shown
    assert shown[-1] == "\r"


def test_a_pipe_gets_no_bar(learner, monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    learner().fit(1)
    assert pipe.getvalue() == ""


def test_without_bars_for_a_while_ours_is_back_afterwards(learner, monkeypatch):
    learn, terminal = learner(), Terminal()
    bar = learn.progress
    monkeypatch.setattr(sys, "stdout", terminal)
    with learn.no_bar(): learn.fit(1)
    assert terminal.getvalue() == "" and learn.progress is bar and type(bar) is WatchProgress


def test_after_ctrl_c_the_next_bar_starts_anew(learner, monkeypatch):
    def stop(self): raise KeyboardInterrupt
    learn, terminal = learner(), Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Callback(after_pred=stop))
    assert learn.progress.pbar is None
    learn.fit(1)
    assert "100.00%" in terminal.getvalue()


def fetches(learn, monkeypatch):
    "How often a number is fetched from a tensor during a fit"
    count, item = [], torch.Tensor.item
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "item", lambda self: count.append(1) or item(self))
        learn.fit(1)
    return len(count)


def test_no_batch_waits_for_a_number_where_nobody_sees_it(learner, monkeypatch):
    few, many = (fetches(learner(bs=bs), monkeypatch) for bs in (32, 8))
    assert few == many < 20
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert fetches(learner(bs=8), monkeypatch) > many, "the control: a live bar does"


def test_in_a_notebook_a_quiet_fit_shows_neither_a_bar_nor_fastais_rows(learner, monkeypatch, capsys):
    from cifar_fastai.training import callbacks, progress
    for room in (callbacks, progress): monkeypatch.setattr(room, "IN_NOTEBOOK", True)
    learn, rows = learner(), []
    learn.logger, learn.progress.quiet, learn.epoch_table.write = print, True, rows.append
    learn.fit(1)
    assert capsys.readouterr().out == "" and len(rows) == 2, "the table goes where it was told to"


def of_torch(*cbs):
    "A Learner on torch's own loaders, which shuffle by torch's generator, and the order that it met"
    seen, data = [], TensorDataset(torch.randn(32, 8), torch.arange(32) % 4)
    note = Callback(before_batch=lambda cb: cb.training and seen.append(cb.xb[0][:, 0].tolist()))
    dls = DataLoaders(DataLoader(data, 8, shuffle=True), DataLoader(data, 8))
    learn = Learner(dls, nn.Linear(8, 4), nn.CrossEntropyLoss(), cbs=[*cbs, note])
    return learn.remove_cb(learn.progress), seen


def test_the_order_of_a_loader_of_torch_goes_by_the_epoch_and_not_by_what_ran_before():
    torch.manual_seed(3)
    (learn, one), (other, two) = of_torch(EpochSeed(0)), of_torch(EpochSeed(0))
    two_data = learn.dls.train.dataset.tensors
    other.dls = DataLoaders(*(DataLoader(TensorDataset(*two_data), 8, shuffle=s) for s in (True, False)))
    with learn.no_logging(), other.no_logging():
        learn.fit(1), learn.fit(1)
        torch.manual_seed(99)
        other.fit(2)
    assert one == two and one[:4] != one[4:] and sorted(sum(one[:4], [])) == sorted(sum(one[4:], []))


def test_a_fit_leaves_torchs_generator_as_it_was_also_where_it_goes_on_after_a_stop(learner, tmp_path):
    class Stop(Callback):
        order = 950
        def after_epoch(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): learner().fit(2, cbs=[Checkpoint(tmp_path), Stop()])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    learner().fit(2, cbs=Checkpoint(tmp_path, resume=True))
    assert torch.equal(torch.get_rng_state(), before)
