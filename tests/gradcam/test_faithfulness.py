"Insertion and deletion on nets whose answer is known by hand"
import pytest
import torch
from tiny import tiny_net
from torch import nn

from cifar_fastai.errors import InputError
from cifar_fastai.gradcam import measure_maps
from cifar_fastai.gradcam.faithfulness import BASELINES, blob_map, insertion_deletion, paired_ci, random_maps


class Share(nn.Module):
    "The probability of class 1 is the sum of the pixels"
    def forward(self, x): s = x.sum((1, 2, 3)).clamp(0, 1); return torch.stack([1 - s, s], 1).log()


def areas(x, maps, target=1, **kwargs):
    return torch.stack(insertion_deletion(Share(), x, maps, target, baseline="zero", **kwargs)).T


@pytest.fixture
def one_pixel():
    "Pictures of 2×2 whose last, second and first pixel is all that counts"
    x = torch.zeros(3, 1, 2, 2)
    for i, at in enumerate((3, 1, 0)): x[i].view(-1)[at] = 1
    return x


def test_the_best_map_has_the_largest_insertion_and_smallest_deletion(one_pixel):
    # the probability: 0 1 1 1 1 while places come back, 1 0 0 0 0 while they go; trapezoids a quarter wide
    assert areas(one_pixel, one_pixel[:, 0], steps=4).tolist() == [[0.875, 0.125]] * 3


def test_the_worst_map_has_the_opposite(one_pixel):
    assert areas(one_pixel, -one_pixel[:, 0], steps=4).tolist() == [[0.125, 0.875]] * 3


def test_ties_go_in_reading_order(one_pixel):
    flat = torch.zeros(3, 2, 2)
    assert areas(one_pixel, flat, steps=4).tolist() == [[0.125, 0.875], [0.625, 0.375], [0.875, 0.125]]


def test_each_picture_has_its_own_target_and_chunks_change_nothing(one_pixel):
    target = torch.tensor([1, 0, 1])
    want = [[0.875, 0.125], [0.125, 0.875], [0.875, 0.125]]
    assert areas(one_pixel, one_pixel[:, 0], target, steps=4).tolist() == want
    assert areas(one_pixel, one_pixel[:, 0], target, steps=4, bs=2).tolist() == want


def test_half_the_places_at_a_time():
    x = torch.full((1, 1, 2, 2), 0.25)
    assert areas(x, torch.rand(1, 2, 2), steps=2).tolist() == [[0.5, 0.5]]
    assert areas(x, torch.rand(1, 2, 2), steps=1).tolist() == [[0.5, 0.5]]


class Steep(nn.Module):
    "The probability of class 1 rises steeply where half of the light is there; counts the pictures it saw"
    def __init__(self): super().__init__(); self.seen, self.dtypes = 0, set()

    def forward(self, x):
        self.seen += len(x)
        z = (12 * x.mean((1, 2, 3)) - 3)[:, None] @ torch.ones(1, 1)
        self.dtypes.add(z.dtype)
        return torch.cat([-z, z], 1)


def by_hand(net, x, maps, steps):
    "The areas of one class, step by step, picture by picture"
    found = []
    for picture, m in zip(x, maps):
        order = m.flatten().argsort(descending=True, stable=True)
        curves = []
        for start, other in ((torch.zeros_like(picture), picture), (picture, torch.zeros_like(picture))):
            seen = []
            for k in range(steps + 1):
                now, places = start.clone().flatten(1), order[:round(k / steps * order.numel())]
                now[:, places] = other.flatten(1)[:, places]
                seen.append(net(now.view_as(picture)[None]).softmax(1)[0, 1])
            curves.append(torch.trapezoid(torch.stack(seen)) / steps)
        found.append(torch.stack(curves))
    return torch.stack(found)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16])
def test_areas_are_those_of_every_step_by_hand_and_a_tolerance_saves_passes(steps):
    rng = torch.Generator().manual_seed(0)
    x, maps, net = torch.rand(9, 2, 6, 5, generator=rng), torch.rand(9, 6, 5, generator=rng), Steep()
    want = by_hand(net, x, maps, steps)
    net.seen = 0
    exact = torch.stack(insertion_deletion(net, x, maps, 1, steps, "zero", bs=7)).T
    torch.testing.assert_close(exact, want, rtol=0, atol=1e-6)
    assert net.seen == 9 * 2 * steps
    net.seen = 0
    near = torch.stack(insertion_deletion(net, x, maps, 1, steps, "zero", tol=.05)).T
    assert (near - want).abs().max() < .02 and net.seen <= 9 * 2 * steps
    if steps == 16: assert net.seen < .8 * 9 * 2 * steps


class Hump(nn.Module):
    "Sure of its class where half of the picture is seen, and of the other one at either end"
    def forward(self, x):
        z = (6 - 24 * (x.mean((1, 2, 3)) - .5).abs())[:, None]
        return torch.cat([-z, z], 1)


def test_a_curve_that_rises_and_falls_again_is_not_taken_for_straight_between_its_ends():
    x, maps = torch.ones(3, 1, 4, 8), torch.rand(3, 4, 8, generator=torch.Generator().manual_seed(0))
    want = by_hand(Hump(), x, maps, 16)
    near = torch.stack(insertion_deletion(Hump(), x, maps, 1, 16, "zero", tol=.05)).T
    assert want.min() > .4 and (near - want).abs().max() < .02


def test_it_computes_in_the_callers_precision_where_that_is_asked_for():
    x, net = torch.rand(2, 1, 4, 4), Steep()
    with torch.autocast("cpu", torch.bfloat16):
        insertion_deletion(net, x, x[:, 0], 1)
        assert net.dtypes == {torch.float32}
        insertion_deletion(net, x, x[:, 0], 1, autocast=True)
    assert net.dtypes == {torch.float32, torch.bfloat16}


def test_pictures_are_brought_to_the_nets_own_dtype_as_for_its_maps():
    torch.manual_seed(0)
    net, x = tiny_net(4).eval().bfloat16(), torch.randn(6, 3, 16, 16)
    found, = measure_maps(net, x, None, [("layer3", "gradcam")])
    as_net = measure_maps(net, x.bfloat16(), None, [("layer3", "gradcam")])[0]
    assert found == as_net and 0 < found.insertion < 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("baseline", list(BASELINES))
def test_what_hides_a_place_is_computed_in_full_precision_whatever_the_net_runs_in(layout, baseline):
    "A blur in bf16 with channels last took minutes for a hundred pictures"
    x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    net, seen = Share(), []
    net.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.autocast("cpu", torch.bfloat16):
        insertion_deletion(net, x, x[:, 0], 1, steps=1, baseline=baseline, autocast=True)
    assert torch.equal(seen[0], BASELINES[baseline](x)) and seen[0].dtype == torch.float32
    half = BASELINES[baseline](x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), BASELINES[baseline](x), rtol=0, atol=.01)


def test_the_model_is_left_in_train_mode_and_judged_in_eval_mode():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(1.0), nn.Linear(12, 2))
    x, before = torch.randn(5, 3, 2, 2), torch.get_rng_state()
    got = insertion_deletion(net, x, x.mean(1), 0)
    assert net.training and torch.equal(before, torch.get_rng_state())
    assert torch.equal(got[0], insertion_deletion(net.eval(), x, x.mean(1), 0)[0])
    assert got[0].unique().numel() == 5 and not got[0].requires_grad      # with dropout all would be equal


def test_baselines_hide():
    x = torch.rand(2, 3, 12, 8, generator=torch.Generator().manual_seed(0))
    x[0, 1, 6, 4] = 50
    flat = torch.full((1, 2, 12, 8), 0.7)
    torch.testing.assert_close(BASELINES["blur"](flat), flat)
    assert BASELINES["blur"](x)[0, 1].max() < 5 and BASELINES["blur"](x).shape == x.shape
    torch.testing.assert_close(BASELINES["mean"](x)[0, :, 3, 5], x[0].mean((1, 2)))
    assert not BASELINES["zero"](x).any()


def test_the_blurred_spot_stays_where_it_was():
    x = torch.zeros(1, 1, 24, 16)
    x[0, 0, 5, 11] = 1
    assert divmod(BASELINES["blur"](x).argmax().item(), 16) == (5, 11)


def test_control_maps_are_what_they_say():
    noise = random_maps(3, (32, 32), (8, 8))
    assert torch.equal(noise, random_maps(3, (32, 32), (8, 8))) and not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise, random_maps(3, (32, 32), (8, 8), seed=1))
    step = (noise[:, 1:] - noise[:, :-1]).abs().mean()
    assert step < 0.15 < (noise[:, 4:] - noise[:, :-4]).abs().mean()        # smooth within 4 pixels
    blob = blob_map(2, (33, 17))
    assert divmod(blob[1].argmax().item(), 17) == (16, 8)
    torch.testing.assert_close(blob, blob.flip(1).flip(2))
    assert blob[0, 0, 8] == pytest.approx(torch.e ** -2)


def test_paired_interval_holds_the_mean_and_narrows_with_n():
    a, rng = torch.zeros(400), torch.Generator().manual_seed(0)
    b = torch.randn(400, generator=rng) + 1
    mean, low, high = paired_ci(a, b)
    assert mean == pytest.approx(-b.double().mean().item())
    half_width = 1.96 * b.std().item() / 20                                     # the normal approximation
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.1) and low < -1 < high
    assert paired_ci(a, b) == (mean, low, high)
    assert paired_ci(a, a + 0.5) == (-0.5, -0.5, -0.5)
    assert paired_ci(b, a)[1] == pytest.approx(-high, abs=0.02)


@pytest.mark.parametrize("call, says", [
    (lambda x: areas(x, x), "Upsample"), (lambda x: areas(x, x[:, 0], steps=0), "steps is 0"),
    (lambda x: insertion_deletion(Share(), x, x[:, 0], 1, baseline="blurr"), "Did you mean blur"),
    (lambda x: paired_ci(x[0], x), "one per picture")])
def test_what_will_not_do_is_refused_with_the_way_out(one_pixel, call, says):
    with pytest.raises(InputError, match=says): call(one_pixel)
