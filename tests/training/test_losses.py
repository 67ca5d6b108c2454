"""The losses that a recipe can name."""
import pytest
import torch
from tiny import tiny_net
from torch import nn
from torch.nn import functional as F

from cifar_fastai.errors import InputError
from cifar_fastai.training.losses import create_loss


def test_label_smoothing_gives_a_share_of_the_target_to_all_classes():
    logits, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    logs = logits.log_softmax(1)
    by_hand = 0.9 * -logs[range(6), y].mean() + 0.1 * -logs.mean(1).mean()
    assert float(create_loss("ce", 0.1)(logits, y)) == pytest.approx(float(by_hand), rel=1e-5)
    assert float(create_loss("ce")(logits, y)) == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-6)


def with_log_softmax(n_out=10, n_in=3, norm="bn"):
    net = tiny_net(n_out, n_in, norm)
    net.add_module("log_softmax", nn.LogSoftmax(1))
    return net


def test_a_net_that_ends_in_log_softmax_learns_by_nll_as_the_other_by_cross_entropy(learner):
    a, b = learner(loss_func="nll", arch=with_log_softmax), learner(loss_func="ce")
    for learn in (a, b): learn.fit(1, 0.05)
    for p, q in zip(a.model.parameters(), b.model.parameters()): assert torch.allclose(p, q, atol=1e-5)
    probs, _ = a.get_preds()
    assert torch.allclose(probs.sum(1), torch.ones(len(probs)), atol=1e-5)
    assert a.loss_func.decodes(torch.tensor([[-3., -.1]])).tolist() == [1]


def test_nll_of_logits_is_refused_at_the_first_batch(learner):
    learn = learner(loss_func="nll")
    before = learn.model.fc.weight.clone()
    with pytest.raises(InputError, match="needs a net that ends in log_softmax.* Use loss ce"):
        learn.fit(1, 0.05)
    assert torch.equal(before, learn.model.fc.weight)


def test_an_unknown_loss_and_smoothed_nll_are_refused():
    with pytest.raises(InputError, match="unknown loss 'nl'. Did you mean nll?"): create_loss("nl")
    with pytest.raises(InputError, match="no smoothing"): create_loss("nll", 0.1)
    assert create_loss(F.cross_entropy) is F.cross_entropy
    with pytest.raises(InputError, match="smoothing=0.1 does nothing"): create_loss(F.cross_entropy, 0.1)
    assert create_loss(None, 0.1).func.label_smoothing == 0.1
