"""Muon on kernels: torch's own Muon on the flattened kernel, torch's SGD on the rest."""
import pytest
import torch
from torch import nn

from cifar_fastai.training.optimizers import KernelMuon, _orthogonal, optimizer

CHANNELS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def small(layout="contiguous"):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    return net.to(memory_format=CHANNELS[layout])


def gradients(net, steps):
    "Made-up gradients, the same for every net of this shape"
    rng = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in net.parameters():
            p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=rng))
        yield


@pytest.mark.parametrize("layout", CHANNELS)
def test_kernels_learn_by_torchs_muon_and_the_rest_by_torchs_sgd(layout, monkeypatch):
    monkeypatch.setattr(torch, "bfloat16", torch.float32)      # torch's does not round then
    ours, theirs = small(layout), small()
    opt = KernelMuon(ours.parameters(), lr=.1, weight_decay=.01, momentum=.6, sgd_momentum=.85, ns_steps=3)
    for _ in gradients(ours, 4): opt.step()
    kernels = [p for p in theirs.parameters() if p.ndim == 4]
    rest = [p for p in theirs.parameters() if p.ndim != 4]
    flat = [nn.Parameter(p.detach().flatten(1)) for p in kernels]
    muon = torch.optim.Muon(flat, lr=.1, weight_decay=0., momentum=.6, nesterov=True, ns_steps=3)
    sgd = torch.optim.SGD(rest, lr=.1, weight_decay=.01, momentum=.85, nesterov=True)
    for _ in gradients(theirs, 4):
        for f, k in zip(flat, kernels):
            f.grad = k.grad.flatten(1)
            with torch.no_grad(): f.mul_(len(f) ** .5 / f.norm())
        muon.step(), sgd.step()
    for p, f in zip([p for p in ours.parameters() if p.ndim == 4], flat):
        assert torch.allclose(p.detach().flatten(1), f.detach(), atol=1e-6)
    for p, q in zip([p for p in ours.parameters() if p.ndim != 4], rest): assert torch.equal(p, q)


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (64, 27), (128, 1152)])
def test_small_matrices_give_what_the_polynomial_of_the_whole_gives(shape):
    "X ← aX + b(XXᵀ)X + c(XXᵀ)²X, three times in double precision, of a matrix with one row too large"
    g = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    g[0] *= 50
    x = g.double() / g.double().norm()
    for _ in range(3): x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    assert torch.allclose(_orthogonal(g, 3).double(), x, atol=1e-5)
    assert not torch.allclose(_orthogonal(g, 2).double(), x, atol=1e-2), "the control can fail"


def test_an_update_is_orthogonal_whatever_the_size_of_the_gradient():
    "Rows of equal length at right angles: singular values near one, 0.5 … 1.5 after a few steps"
    net = small()
    opt = KernelMuon(net.parameters(), lr=1., momentum=0., ns_steps=5)
    p = net[0].weight
    for _ in gradients(net, 1):
        p.grad.mul_(1e-4)
        p.grad[0] *= 50
        spread = torch.linalg.svdvals(p.grad.flatten(1))
        start = p.detach() * len(p) ** .5 / p.detach().norm()
        opt.step()
    values = torch.linalg.svdvals((start - p.detach()).flatten(1))
    assert spread[0] / spread[-1] > 20 and values.min() > .4 and values.max() < 1.6


def test_a_kernel_has_its_norm_before_the_step():
    net = small()
    opt = KernelMuon(net.parameters(), lr=0.)
    for _ in gradients(net, 1): opt.step()
    norms = [p.detach().norm().item() for p in net.parameters() if p.ndim == 4]
    assert norms == pytest.approx([8 ** .5, 2.])


def test_a_frozen_kernel_stays_and_has_no_state():
    net = small()
    net[0].weight.requires_grad = False
    before, opt = net[0].weight.clone(), KernelMuon(net.parameters())
    for _ in gradients(net, 1):
        net[0].weight.grad = None
        opt.step()
    assert torch.equal(net[0].weight, before) and set(opt.state) == {*net.parameters()} - {net[0].weight}


def test_it_goes_on_from_a_saved_state():
    def run(stop=None):
        net = small()
        opt = optimizer("muon", mom=.6)(list(net.parameters()), lr=.1)
        for k, _ in enumerate(gradients(net, 4)):
            if k == stop:
                saved = opt.state_dict()
                opt = optimizer("muon", mom=.6)(list(net.parameters()), lr=.1)
                opt.load_state_dict(saved)
            opt.step()
        return [p.detach().clone() for p in net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(run(), run(stop=2)))
    assert any(not torch.equal(a, b) for a, b in zip(run(), small().parameters()))


def test_a_learner_trains_with_it(learner):
    learn = learner(opt="muon", mom=.6, aug=None)
    learn.fit_one_cycle(6, .05)
    assert learn.final_record[-1] > .6                        # a quarter would be chance
    assert learn.opt.hypers[0]["mom"] == .6 and learn.opt.hypers[0]["sgd_momentum"] == .85
