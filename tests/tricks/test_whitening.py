"""A whitened stem: what it does to patches, and that SGD on it is SGD behind a fixed filter."""
import pytest
import torch
import torch.nn.functional as F
from fits import KillAt, Killed
from torch import nn

from cifar_fastai.checkpoints import Checkpoint
from cifar_fastai.errors import InputError
from cifar_fastai.loaders import cifar_dataloaders
from cifar_fastai.models import airbench
from cifar_fastai.tricks import whiten_stem
from cifar_fastai.tricks.whitening import StemGradient, patch_statistics


def correlated(n=200, size=8):
    "Pictures whose neighbouring pixels and channels are alike"
    x = torch.randn(n, 1, size + 4, size + 4, generator=torch.Generator().manual_seed(0))
    x = F.avg_pool2d(x, 3, 1, 1)[:, :, 2:-2, 2:-2] * 3
    return torch.cat([x, x + .5 * x.flip(2), x * .5 + .4 * x.flip(3)], 1)


@pytest.mark.parametrize("kernel", [(3, 3), (2, 2)])
def test_filters_make_patches_uncorrelated_and_of_one_size(kernel):
    x = correlated()
    values, rows = patch_statistics(x, kernel)
    patches = F.unfold(x, kernel).transpose(1, 2).flatten(0, 1).double()
    white, n = patches @ (rows / values.sqrt()[:, None]).T, len(rows)
    assert n == 3 * kernel[0] * kernel[1] and list(values) == sorted(values, reverse=True)
    assert torch.allclose(white.T @ white / len(white), torch.eye(n).double(), atol=1e-3)
    before = patches.T @ patches / len(patches)
    assert (before / before.diag().mean() - torch.eye(n)).abs().max() > .3, "they were correlated"


def steps(net, opt, hook=None, n=20):
    x = correlated(64).double()
    y = torch.arange(64) % 3
    for k in range(n):
        loss = F.cross_entropy(net(x[k % 4 * 16:][:16]), y[k % 4 * 16:][:16])
        opt.zero_grad()
        loss.backward()
        if hook is not None: hook()
        opt.step()


def test_sgd_on_the_stem_takes_the_steps_of_sgd_behind_a_fixed_whitening_filter():
    "In double precision, with momentum, Nesterov and weight decay"
    values, rows = patch_statistics(correlated(), (3, 3))
    filters = rows / (values + 1e-2).sqrt()[:, None]
    torch.manual_seed(0)
    start, head = torch.randn(6, 27).double() * .2, torch.randn(3, 6).double()

    def make(*convs):
        fc = nn.Linear(6, 3, bias=False).double()
        fc.weight.data.copy_(head)
        return nn.Sequential(*convs, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc)
    shapes = (3, 27, 3), (27, 6, 1), (3, 6, 3)
    fixed, mix, one = (nn.Conv2d(*shape, bias=False).double() for shape in shapes)
    fixed.weight.data.copy_(filters.view_as(fixed.weight))
    fixed.weight.requires_grad = False
    mix.weight.data.copy_(start.view_as(mix.weight))
    one.weight.data.copy_((start @ filters).view_as(one.weight))
    kinds = {"lr": .05, "momentum": .9, "nesterov": True, "weight_decay": 1e-2}
    two = make(fixed, mix)
    steps(two, torch.optim.SGD([p for p in two.parameters() if p.requires_grad], **kinds))
    net, hook = make(one), StemGradient(one, filters.T @ filters)
    steps(net, torch.optim.SGD(net.parameters(), **kinds), hook.before_step)
    want = (mix.weight.flatten(1) @ filters).view_as(one.weight)
    assert torch.allclose(one.weight, want, rtol=1e-9, atol=1e-11)
    assert (want.flatten(1) - start @ filters).abs().max() > .01, "it has learnt"
    plain = make(alone := nn.Conv2d(3, 6, 3, bias=False).double())
    alone.weight.data.copy_((start @ filters).view_as(one.weight))
    steps(plain, torch.optim.SGD(plain.parameters(), **kinds))
    assert not torch.allclose(alone.weight, want, rtol=1e-3), "without the hook it takes others"


def test_a_learners_stem_is_whitened_and_stays_a_plain_convolution(learner):
    learn = learner(aug=None)
    shapes = {k: v.shape for k, v in learn.model.state_dict().items()}
    whiten_stem(learn, eps=1e-6)
    assert {k: v.shape for k, v in learn.model.state_dict().items()} == shapes
    x = torch.cat([b[0] for b in learn.dls.valid])
    patches = F.unfold(x, 3).transpose(1, 2).flatten(0, 1).double()
    moments = patches.T @ patches / len(patches)
    w = learn.model.layer1[0].weight.detach().flatten(1).double()
    out = (w @ moments @ w.T).diag()       # second moments of what it gives: those of P·H on white patches
    assert out.std() / out.mean() < .5 and out.mean() == pytest.approx(1 / 3, rel=.3)
    assert [type(cb) for cb in learn.cbs if isinstance(cb, StemGradient)] == [StemGradient]


def test_the_range_test_and_the_fit_train_with_it_and_training_falls(learner):
    learn = learner(aug=None)
    whiten_stem(learn)
    before = learn.model.layer1[0].weight.detach().clone()
    learn.lr_find(num_it=40, show_plot=False)
    assert torch.equal(learn.model.layer1[0].weight, before), "the range test puts the stem back"
    learn.fit_one_cycle(6, .05)
    assert learn.final_record[-1] > .6


def test_a_killed_fit_ends_like_an_undisturbed_one(learner, tmp_path):
    def end(*cbs, **kwargs):
        learn = learner()
        whiten_stem(learn)
        learn.fit_one_cycle(3, .05, cbs=[Checkpoint(tmp_path / kwargs.pop("to"), **kwargs), *cbs])
        return [p.detach().numpy().tobytes() for p in learn.model.parameters()]
    whole = end(to="whole")
    with pytest.raises(Killed): end(KillAt("after_epoch", 1), to="killed")
    assert end(to="killed", resume=True) == whole


@pytest.fixture
def frozen(learnable, learner):
    def make(data=learnable):
        learn = learner(dls=cifar_dataloaders(data, 32, None, num_workers=0, device="cpu"), arch=airbench)
        whiten_stem(learn, 5e-4)
        return learn, learn.model.stem[0]
    return make


def test_a_frozen_stem_holds_filters_and_their_negatives_and_does_not_train(frozen):
    learn, conv = frozen()
    half = len(conv.weight) // 2
    assert torch.equal(conv.weight[:half], -conv.weight[half:]) and half == 12
    before = conv.weight.detach().clone()
    learn.fit_one_cycle(1, .01)
    assert torch.equal(conv.weight, before) and conv.bias.abs().sum() > 0
    assert not any(isinstance(cb, StemGradient) for cb in learn.cbs)


@pytest.mark.parametrize("free", [lambda learn: learn.freeze(), lambda learn: learn.unfreeze(),
                                  lambda learn: learn.fine_tune(1, .01)])
def test_what_airbench_never_trains_stays_so_whatever_is_unfrozen(frozen, free):
    learn, conv = frozen()
    before, kernel = conv.weight.detach().clone(), learn.model.layer1[0].weight
    first = kernel.detach().clone()
    free(learn)
    learn.fit(1, .01)
    norms = [m for m in learn.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert torch.equal(conv.weight, before) and norms and not any(m.weight.requires_grad for m in norms)
    assert torch.equal(kernel, first) != kernel.requires_grad, "the control trains where it is not frozen"


def test_on_grey_pictures_no_channel_of_a_frozen_stem_is_dead(frozen, digits):
    "Their three channels are one: most eigenvalues are 0, and a filter for nothing blows up rounding"
    learn, conv = frozen(digits)
    x = torch.cat([b[0] for b in learn.dls.valid])
    out = conv(x).detach()
    assert out.std((0, 2, 3)).min() > .05 and conv.weight.abs().max() < 50


def test_filters_do_not_depend_on_the_signs_that_a_library_gives(learner):
    x = correlated()
    values, rows = patch_statistics(x, (3, 3))
    assert (rows.gather(1, rows.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("net", [nn.Sequential(nn.Flatten(), nn.Linear(768, 4)),
                                 nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Flatten())])
def test_a_net_without_such_a_stem_is_refused(learner, net):
    with pytest.raises(InputError, match="begins with a convolution"): whiten_stem(learner(arch=net))


def test_other_dataloaders_are_refused_by_name(learner):
    from fits import tiny
    learn = learner()
    learn.dls = tiny().dls
    with pytest.raises(InputError, match="cifar_dataloaders"): whiten_stem(learn)
