"Whether maps are better than noise, on nets whose answer is known by hand"
import pytest
import torch
from torch import nn

from cifar_fastai.gradcam import evidence
from cifar_fastai.gradcam.evidence import Evidence, affordable, measure_maps, usual_pairs, warnings_of
from cifar_fastai.gradcam.faithfulness import insertion_deletion, paired_ci, random_maps
from cifar_fastai.gradcam.methods import METHODS


class Spot(nn.Module):
    "Class 1 is a bright spot, wherever it stands; `layer1` sees it, `layer2` is blind"
    def __init__(self):
        super().__init__()
        self.layer1, self.layer2 = nn.Identity(), nn.Identity()

    def forward(self, x):
        seen = self.layer1(x[:, :1] * 1) + 1e-3 * self.layer2(x[:, :1].flip(3) * 1)
        z = 12 * (seen.flatten(1).topk(25).values.mean(1) - 1.3)         # the brightest 5×5 places
        return torch.stack([-z, z], 1)


@pytest.fixture
def spots():
    x, rng = torch.zeros(60, 1, 16, 16), torch.Generator().manual_seed(0)
    for picture, (r, c) in zip(x, torch.randint(0, 11, (60, 2), generator=rng)):
        picture[0, r:r + 5, (c % 4):(c % 4) + 5] = 2.
    return x


def test_maps_of_the_layer_that_counts_are_better_than_noise_and_blind_ones_are_not(spots):
    right, wrong = measure_maps(Spot(), spots, None, [(["layer1", "layer2"], "hirescam")])
    assert (right.layer, wrong.layer) == ("layer1", "layer2") and right.better and not wrong.better
    assert right.insertion > right.noise[0] + .1 and right.deletion < right.noise[1] - .1
    assert wrong.insertion < wrong.noise[0]
    assert right.pictures == 60 and right.as_dict()["better_than_noise"] is True


def test_figures_are_those_of_insertion_deletion_and_the_paired_interval(spots):
    e, = measure_maps(Spot(), spots, None, [("layer1", "hirescam")], seed=3)
    target = torch.ones(60, dtype=int)
    mine = insertion_deletion(Spot(), spots, spots[:, 0], target, 8, tol=.02)
    noise = insertion_deletion(Spot(), spots, random_maps(60, (16, 16), (16, 16), 3), target, 8, tol=.02)
    assert (e.insertion, e.deletion) == pytest.approx(tuple(a.mean().item() for a in mine))
    assert e.noise == pytest.approx(tuple(a.mean().item() for a in noise))
    assert e.insertion_gain == pytest.approx(paired_ci(mine[0], noise[0], seed=3))
    assert e.deletion_gain == pytest.approx(paired_ci(mine[1], noise[1], seed=3))


def made(better=True, layer="layer3", insertion=.7):
    gain = (.2, .1, .3) if better else (.01, -.05, .07)
    return Evidence(layer, "gradcam", 100, insertion, .31, (.5, .52), gain, (-gain[0], -gain[2], -gain[1]))


def test_caption_and_warning_name_the_figures_and_the_way_out():
    said = "gradcam at layer3: insertion 0.70, deletion 0.31 (noise 0.50, 0.52; 100 pictures)"
    assert made().caption == said
    assert made(False).caption == "NOT better than noise: " + said
    assert warnings_of([made()], [made(False)]) == []
    others = made(False, "layer1", .9), made(True, "layer2"), made(True, "layer4", .8)
    assert warnings_of([made(False)], others) == [     # the best of those that are
        "gradcam at layer3 is not better than noise on this net: insertion +0.010 (-0.050 … +0.070), "
        "deletion -0.010 (-0.070 … +0.050) beside it, n=100. Take gradcam at layer4: insertion +0.200 "
        "(+0.100 … +0.300), deletion -0.200 (-0.300 … -0.100)."]
    said, = warnings_of([made(False)], [made(False, "layer4")])
    assert said.endswith("Nor is any other that was tried: do not believe this net's maps.")
    two = warnings_of([made(False), made(True, "layer4"), made(False, "layer1")], [])
    assert [line.split(" is ")[0] for line in two] == ["gradcam at layer3", "gradcam at layer1"]
    assert all("Take gradcam at layer4" in line for line in two), "each layer that is shown"


def test_the_noise_is_as_smooth_as_the_maps_it_is_compared_with(spots, monkeypatch):
    grids, made_noise = [], random_maps
    monkeypatch.setattr(evidence, "random_maps", lambda n, size, grid, seed: grids.append(grid) or made_noise(
        n, size, grid, seed))
    net = Spot()
    net.pooled = nn.AvgPool2d(4)
    plain = net.forward
    net.forward = lambda x: plain(x) + net.pooled(x[:, :1]).sum((1, 2, 3))[:, None] * 1e-3
    found = measure_maps(net, spots, None, [(["layer1", "pooled"], "hirescam"), ("layer1", "layercam")])
    assert grids == [(16, 16), (4, 4)] and found[0].noise == found[2].noise != found[1].noise


@pytest.mark.parametrize("gains", [((.1, .05, .2), (-.1, -.2, .01)), ((.1, -.01, .2), (-.1, -.2, -.05))])
def test_both_intervals_must_lie_on_the_good_side(gains):
    assert not Evidence("a", "gradcam", 9, .5, .5, (.5, .5), *gains).better


@pytest.mark.parametrize("trained, of, maps, want", [
    (20 * 50_000, 10_000, 1, 100),     # CIFAR-10: as many as are ever measured
    (20 * 50_000, 10_000, 5, 56),      # 9,000 passes / 32 / 5
    (20 * 1_437, 360, 5, 26),          # digits: 4,310 passes / 32 / 5
    (20 * 1_437, 30, 1, 30),           # no more than there are
    (2 * 200, 360, 1, 0), (5 * 200, 5, 1, 0)])
def test_measuring_takes_a_twentieth_of_the_trainings_work_or_is_left(trained, of, maps, want):
    assert affordable(trained, of, maps) == want
    assert want * maps * 2 * 2 * 8 <= min(.05 * 3 * trained, 9_000)      # passes: map and noise, 16 each


def test_a_map_and_its_noise_take_no_more_passes_than_are_counted(spots):
    seen, net = [], Spot()
    net.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    measure_maps(net, spots, None, [("layer1", "hirescam")])
    assert sum(seen) <= 60 * (1 + 2 * 2 * 8)


def test_usual_pairs_are_the_default_and_each_stage():
    assert usual_pairs(Spot()) == [(None, "gradcam"), (["layer1", "layer2"], "layercam")]
    assert usual_pairs(nn.Sequential(nn.Conv2d(1, 2, 3))) == [(None, "gradcam"), (None, "layercam")]


def test_the_default_layer_is_measured_under_its_name(spots):
    assert [(e.layer, e.method) for e in measure_maps(Spot(), spots, None, usual_pairs(Spot()))] == [
        ("layer2", "gradcam"), ("layer1", "layercam"), ("layer2", "layercam")]


def test_measuring_leaves_model_and_generators_as_they_were(spots):
    net, before = Spot().train(), torch.get_rng_state()
    measure_maps(net, spots, None, [("layer1", m) for m in METHODS])
    assert net.training and torch.equal(before, torch.get_rng_state()) and not net.layer1._forward_hooks
