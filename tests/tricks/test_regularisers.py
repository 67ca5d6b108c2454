"""Clipping to the bit, L1 by its gradient, mixing by its formula and from its own draws."""
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from torch.nn import functional as F

from cifar_fastai.checkpoints.stop_on_nonfinite import StopOnNonFinite
from cifar_fastai.errors import InputError
from cifar_fastai.tricks.regularisers import ClipGradients, L1Loss, mixing


class Gradients(Callback):
    "The gradients before anything clips them, and those of the step"
    order = 0
    def __init__(self): self.before, self.losses = [], []
    def before_step(self): self.before.append([p.grad.clone() for p in self.model.parameters()])
    def after_batch(self): self.losses.append(float(self.learn.loss.detach()))


class Late(Callback):
    order = 999     # what `StopOnNonFinite` and the optimiser get
    def __init__(self): self.after = []
    def before_step(self): self.after.append([p.grad.clone() for p in self.model.parameters()])


def one_epoch(learner, *cbs, **kwargs):
    "Gradients as they came and as they were used"
    learn, early, late = learner(aug=None, **kwargs), Gradients(), Late()
    learn.fit(1, 0.01, cbs=[early, late, *cbs])
    return learn, early, late


def test_clipping_by_value_puts_every_element_between_its_limits(learner):
    _, early, late = one_epoch(learner, ClipGradients(value=0.01))
    for a, b in zip(early.before, late.after):
        assert all(torch.equal(x.clamp(-0.01, 0.01), y) for x, y in zip(a, b))
    assert any((x.abs() > 0.01).any() for x in early.before[0]), "there was something to clip"


def test_clipping_by_norm_keeps_the_direction_and_sets_the_length(learner):
    _, early, late = one_epoch(learner, ClipGradients(norm=0.05))
    for a, b in zip(early.before, late.after):
        a, b = (torch.cat([x.flatten() for x in xs]) for xs in (a, b))
        assert a.norm() > 0.05 and b.norm() == pytest.approx(0.05, rel=1e-4)
        assert F.cosine_similarity(a, b, dim=0) == pytest.approx(1, abs=1e-5)


def test_clipping_by_both_clips_by_value_first(learner):
    _, early, late = one_epoch(learner, ClipGradients(value=0.02, norm=0.05))
    clipped = torch.cat([x.clamp(-0.02, 0.02).flatten() for x in early.before[0]])
    used = torch.cat([x.flatten() for x in late.after[0]])
    assert used == pytest.approx(clipped * min(1, 0.05 / (clipped.norm() + 1e-6)), rel=1e-4)


def test_clipping_stands_between_unscaling_and_the_watch_for_infinities():
    from cifar_fastai.training.precision import Precision
    assert Precision.order < ClipGradients.order < StopOnNonFinite.order


def test_the_penalty_counts_once_a_step_however_many_batches_make_it(learner):
    "4 × 8 accumulated against 32 at once, without norms: the gradients of data and penalty are the same"
    def gradients(bs, *cbs):
        learn = learner(bs=bs, aug=None, norm="gn", wd=0.)
        used = Late()
        learn.fit(1, .01, cbs=[used, L1Loss(.01), *cbs])
        return used.after[0]
    whole, parts = gradients(32), gradients(8, GradientAccumulation(32))
    none = one_epoch(learner, norm="gn", wd=0.)[2].after[0]
    for a, b in zip(whole, parts): assert torch.allclose(a, b, atol=1e-6)
    assert any((a - b).abs().max() > .009 for a, b in zip(whole, none)), "there is a penalty"


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(InputError, match="clipping by value"): ClipGradients(value=limit)


@pytest.mark.parametrize("rule", ["sum", "scaled"])
def test_l1_adds_its_gradient_to_weights_alone_and_leaves_the_shown_loss(learner, rule):
    plain, without, _ = one_epoch(learner)
    learn, early, _ = one_epoch(learner, L1Loss(0.02, rule))
    start = learner(aug=None).model
    for p, a, b in zip(start.parameters(), without.before[0], early.before[0]):
        pull = 0.02 * p.detach().sign() * (p.detach().abs().mean() if rule == "scaled" else 1)
        assert torch.allclose(b - a, pull if p.ndim > 1 else torch.zeros_like(p), atol=1e-6)
    assert early.losses[0] == without.losses[0], "the penalty is not in the loss that is shown"
    assert not torch.equal(learn.model.fc.weight, plain.model.fc.weight)


def test_l1_scaled_pulls_a_tensor_as_hard_as_a_weight_decay_of_the_same_factor(learner):
    without, early = (one_epoch(learner, *cbs)[1] for cbs in ((), (L1Loss(0.02, "scaled"),)))
    for p, a, b in zip(learner(aug=None).model.parameters(), without.before[0], early.before[0]):
        decay = (0.02 * p.detach()).abs().sum() if p.ndim > 1 else torch.zeros(())
        assert float((b - a).abs().sum()) == pytest.approx(float(decay), rel=1e-3, abs=1e-5)


def test_l1_drives_weights_to_zero(learner):
    size = lambda learn: sum(p.abs().sum() for p in learn.model.parameters() if p.ndim > 1)
    assert size(one_epoch(learner, L1Loss(0.5))[0]) < size(one_epoch(learner)[0])


class Mixed(Callback):
    order = 5       # after mixing
    def before_fit(self): self.seen = []
    def before_batch(self):
        if self.training: self.seen.append(self.x.clone())


@pytest.mark.parametrize("how", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_mixing_draws_from_seed_epoch_and_batch_alone(learner, how):
    def seen(disturb, seed=0):
        learn, watch = learner(aug=None, seed=seed), Mixed()
        torch.manual_seed(disturb)
        learn.fit(2, 0.01, cbs=[mixing(**how), watch])
        return watch.seen
    a, b, other = seen(1), seen(2), seen(1, seed=1)
    assert all(torch.equal(x, y) for x, y in zip(a, b)) and not torch.equal(a[0], other[0])
    plain = Mixed()
    learner(aug=None).fit(1, 0.01, cbs=plain)
    assert not torch.equal(plain.seen[0], a[0])


def test_mixed_loss_is_the_mean_of_both_labels_losses(learner):
    learn, mix = learner(aug=None, smoothing=0.1), mixing(mixup=0.4)
    found = []

    class Look(Callback):
        order = 60
        def after_loss(self):
            if not self.training: return
            ce = lambda y: F.cross_entropy(self.pred, y, reduction="none", label_smoothing=0.1)
            (other,) = mix.yb1
            pair = self.learn.loss, torch.lerp(ce(other), ce(self.y), mix.lam).mean()
            found.append(tuple(float(v.detach()) for v in pair))
    learn.fit(1, 0.01, cbs=[mix, Look()])
    assert all(a == pytest.approx(b, rel=1e-5) for a, b in found) and len(found) == 5


def test_an_interrupted_fit_has_its_own_loss_again(learner):
    class Stop(Callback):
        def after_batch(self): raise KeyboardInterrupt
    learn = learner()
    loss = learn.loss_func
    with pytest.raises(KeyboardInterrupt): learn.fit(1, 0.01, cbs=[mixing(cutmix=1.0), Stop()])
    assert learn.loss_func is loss


def test_both_ways_of_mixing_at_once_are_refused():
    with pytest.raises(InputError, match="Give one of them"): mixing(mixup=0.2, cutmix=1.0)
    assert mixing() is None
