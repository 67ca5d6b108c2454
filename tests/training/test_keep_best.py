"""The best weights are those of the best epoch, by a holdout, never by the test set."""
import pytest
import torch
from fastai.callback.core import Callback, CancelEpochException, CancelValidException
from fastai.callback.training import ShortEpochCallback
from fastai.metrics import error_rate
from test_schedules import Pretended

from cifar_fastai.errors import InputError
from cifar_fastai.training.records import KeepBest


class EachEpoch(Callback):
    order = 70
    def __init__(self): self.weights = []
    def after_epoch(self): self.weights.append({k: v.clone() for k, v in self.model.state_dict().items()})


@pytest.mark.parametrize("accuracies, losses, best", [
    ([.2, .7, .5, .6], [3, 2, 1, 1], 2),
    ([.2, .7, .5, .7], [3, 2, 1, 1.5], 4),
    ([.7, .7, .7, .7], [1, 1, 1, 1], 1)])
def test_the_weights_at_the_end_are_the_best_epochs(learner, accuracies, losses, best):
    learn, all_of_them, keep = learner(valid="holdout"), EachEpoch(), KeepBest()
    learn.fit(4, 0.1, cbs=[Pretended(losses, accuracies), all_of_them, keep])
    assert keep.best_epoch == learn.epoch_of_best == best
    for k, epoch in enumerate(all_of_them.weights, 1):
        same = all(torch.equal(v, epoch[name]) for name, v in learn.model.state_dict().items())
        assert same == (k == best)


def test_the_test_set_may_not_choose(learner):
    with pytest.raises(InputError, match="keeping the best weights would choose by the test set"):
        learner(valid="test").fit(1, 0.1, cbs=KeepBest())


def test_a_fit_that_ends_in_an_error_keeps_its_last_weights(learner):
    class Fail(Callback):
        order = 80
        def after_epoch(self):
            if self.epoch == 1: raise RuntimeError("out of luck")
    learn, seen = learner(valid="holdout"), EachEpoch()
    with pytest.raises(RuntimeError, match="out of luck"):
        learn.fit(3, 0.1, cbs=[Pretended([1, 2], [.9, .1]), KeepBest(), seen, Fail()])
    assert all(torch.equal(v, seen.weights[1][k]) for k, v in learn.model.state_dict().items())




def test_a_learner_without_accuracy_is_refused_before_it_trains(learner):
    learn, seen = learner(valid="holdout", metrics=error_rate), EachEpoch()
    with pytest.raises(InputError, match="unknown metric 'accuracy'"): learn.fit(2, cbs=[KeepBest(), seen])
    assert seen.weights == []


def test_an_epoch_that_is_passed_over_is_not_the_best(learner):
    class Skips(Callback):
        def before_epoch(self):
            if self.epoch == 1: raise CancelEpochException
    class Said(Pretended):
        def after_epoch(self):
            if self.epoch != 1: super().after_epoch()
    learn, keep = learner(valid="holdout"), KeepBest()
    learn.fit(3, 0.1, cbs=[Said([3, 2, 2], [.2, .9, .4]), Skips(), keep])
    assert keep.best_epoch == 3
    learn.fit(3, 0.1, cbs=[again := KeepBest()], start_epoch=1)
    assert again.best_epoch in (2, 3)


def test_an_epoch_that_was_not_validated_is_not_the_best(learner):
    class Skips(Callback):
        def before_validate(self):
            if self.epoch == 1: raise CancelValidException
    keep = KeepBest()
    learner(valid="holdout").fit(3, 0.1, cbs=[Skips(), keep])
    assert keep.best_epoch in (1, 3)


def test_where_no_epoch_is_validated_it_says_that_it_kept_nothing(learner, caplog):
    def skip(self): raise CancelValidException
    learner(valid="holdout").fit(2, 0.1, cbs=[Callback(before_validate=skip), KeepBest()])
    assert "kept nothing: no epoch was validated" in caplog.text


def test_an_epoch_whose_training_was_cut_short_can_be_the_best(learner):
    learn, keep = learner(valid="holdout"), KeepBest()
    learn.fit(1, 0.1, cbs=[ShortEpochCallback(.5, short_valid=False), keep])
    assert keep.best_epoch == 1 and keep.best[0] == pytest.approx(learn.recorder.values[0][1])
