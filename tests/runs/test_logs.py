"""What a run writes while it trains is whole at any moment and says what happened."""
import csv
import io
import os
import time

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelEpochException, CancelValidException
from fastai.callback.training import ShortEpochCallback
from fastai.learner import Metric
from fastai.metrics import accuracy
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_fastai.checkpoints.checkpoint import Checkpoint
from cifar_fastai.runs.logs import History, TensorBoardLog


class Reads(Callback):
    "Reads the table after each epoch"
    order = 100
    def __init__(self, file): self.file, self.tables = file, []
    def after_epoch(self): self.tables.append(list(csv.DictReader(self.file.open())))


def test_history_is_whole_after_each_epoch_and_equals_the_recorder(learner, tmp_path):
    learn, history = learner(), History(tmp_path / "new" / "history.csv")
    reads = Reads(tmp_path / "new" / "history.csv")
    learn.fit_one_cycle(3, .1, cbs=[history, reads])
    assert [len(t) for t in reads.tables] == [1, 2, 3]
    assert list(reads.tables[2][0]) == ["epoch", "train_loss", "valid_loss", "accuracy", "lr", "mom"]
    for k, (row, values) in enumerate(zip(reads.tables[2], learn.recorder.values)):
        assert int(row["epoch"]) == k + 1 and float(row["mom"]) == .9
        said = [float(row[c]) for c in ("train_loss", "valid_loss", "accuracy")]
        assert said == pytest.approx(list(values))
        assert float(row["lr"]) == pytest.approx(learn.recorder.lrs[5 * k + 4])
    assert len(history.seconds) == 3 and os.listdir(tmp_path / "new") == ["history.csv"]


def test_history_knows_what_earlier_processes_spent(learner, tmp_path):
    first, second = History(tmp_path / "a.csv"), History(tmp_path / "b.csv")
    learner().fit(2, cbs=first)
    assert first.earlier == 0
    second.load_state_dict(first.state_dict())
    assert second.rows == first.rows and second.earlier == sum(first.seconds) > 0


def test_history_of_an_epoch_that_was_resumed_in_its_middle_has_the_time_of_both_parts(learner, tmp_path):
    class Slow(Callback):
        order = 940
        def __init__(self, stop): self.stop = stop
        def after_batch(self):
            if not self.training: return
            time.sleep(.1)
            if self.iter == self.stop: raise KeyboardInterrupt
    first, second = History(tmp_path / "a.csv"), History(tmp_path / "a.csv")
    with pytest.raises(KeyboardInterrupt):
        learner().fit(1, cbs=[first, Slow(3), Checkpoint(tmp_path, every_minutes=0)])
    learner().fit(1, cbs=[second, Slow(9), Checkpoint(tmp_path, resume=True)])
    assert second.seconds[0] >= .4 and second.earlier >= .3     # of five batches, four before the stop


def test_history_has_what_was_measured_of_an_epoch_that_was_cut_short(learner, tmp_path):
    class Words(Metric):
        value, name = "fair", "verdict"
    class Short(Callback):
        def before_validate(self):
            if self.epoch == 0: raise CancelValidException
    learn, board = learner(metrics=[accuracy, Words()]), TensorBoardLog(tmp_path / "tb")
    learn.fit(2, cbs=[History(tmp_path / "history.csv"), board, Short()])
    first, second = csv.DictReader((tmp_path / "history.csv").open())
    assert float(first["train_loss"]) > 0 and first["valid_loss"] in ("", None)
    assert float(second["valid_loss"]) > 0 and "verdict" not in second


def test_history_of_an_epoch_that_was_passed_over_has_no_values(learner, tmp_path):
    class Short(Callback):
        order = 0
        def before_epoch(self):
            if self.epoch == 1: raise CancelEpochException
    history = History(tmp_path / "history.csv")
    learner().fit(4, cbs=[history, Short(), ShortEpochCallback(.5, short_valid=False)])
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [r["epoch"] for r in rows] == list("1234") and history.seconds[1] == 0
    assert rows[1]["accuracy"] == "" and float(rows[2]["accuracy"]) > 0


def test_history_that_stays_on_the_learner_is_not_touched_by_other_loops(learner, tmp_path):
    learn, history = learner(), History(tmp_path / "history.csv")
    learn.add_cb(history)
    learn.fit(2)
    table = (tmp_path / "history.csv").read_text()
    learn.lr_find(num_it=40, show_plot=False), learn.validate(), learn.get_preds(), learn.tta()
    assert len(history.rows) == 2 and (tmp_path / "history.csv").read_text() == table
    learn.fit(1)
    assert len(history.rows) == 1, "a new fit, a new table"


def read(folder):
    "What TensorBoard shows: {tag: [(step, value), …]} and the pictures"
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    scalars = {t: [(e.step, e.value) for e in events.Scalars(t)] for t in events.Tags()["scalars"]}
    return scalars, {t: events.Images(t)[0] for t in events.Tags()["images"]}


def test_tensorboard_has_every_batch_and_every_epoch(learner, tmp_path):
    from batch_losses import BatchLosses
    learn, board, losses = learner(), TensorBoardLog(tmp_path / "tb"), BatchLosses()
    learn.fit_one_cycle(2, .1, cbs=[board, losses])
    Image.fromarray(np.full((9, 7, 3), (250, 5, 5), np.uint8)).save(tmp_path / "red.png")
    board.add_picture("red", tmp_path / "red.png")
    board.close()
    scalars, pictures = read(tmp_path / "tb")
    assert [s for s, _ in scalars["train/loss"]] == list(range(1, 11))
    assert [v for _, v in scalars["train/loss"]] == pytest.approx(losses.seen, abs=1e-6)
    assert [v for _, v in scalars["train/lr"]] == pytest.approx(learn.recorder.lrs)
    assert [v for _, v in scalars["train/momentum"]] == pytest.approx([.9] * 10)
    for column, name in enumerate(("train_loss", "valid_loss", "accuracy")):
        expected = [(5, learn.recorder.values[0][column]), (10, learn.recorder.values[1][column])]
        assert [s for s, _ in scalars[f"epoch/{name}"]] == [s for s, _ in expected]
        assert [v for _, v in scalars[f"epoch/{name}"]] == pytest.approx([v for _, v in expected])
    shown = np.asarray(Image.open(io.BytesIO(pictures["red"].encoded_image_string)))
    assert shown.shape == (9, 7, 3) and (shown == (250, 5, 5)).all() and pictures["red"].step == 11


def test_tensorboard_writes_nothing_outside_of_a_fit_and_closes_its_file_after_ctrl_c(learner, tmp_path):
    learn, board = learner(), TensorBoardLog(tmp_path / "tb")
    learn.add_cb(board)
    learn.lr_find(num_it=40, show_plot=False), learn.validate(), learn.get_preds(), learn.tta()
    assert not (tmp_path / "tb").exists()
    def stop(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Callback(after_step=stop))
    assert board.writer is None


def test_the_graph_is_drawn_from_a_copy(learner, tmp_path):
    learn, board = learner(), TensorBoardLog(tmp_path / "tb")
    learn.model.train()
    board.add_graph(learn.model, torch.zeros(1, 3, 16, 16))
    board.close()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert events.Tags()["graph"] and learn.model.training
