"""Grad-CAM against mathematics, finite differences, two other libraries and a trained net.

R1 to R9 and R14 to R16 are numbers known beforehand; R10 and R11 are `grad-cam` and `captum`; R18 and R19
ask a net that was trained here, on handwritten digits in noise, whether the maps show what it looks at.
"""
import gc
import resource
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_fastai.errors import InputError
from cifar_fastai.gradcam.cam import GradCAM
from cifar_fastai.gradcam.faithfulness import blob_map, insertion_deletion, paired_ci, random_maps
from cifar_fastai.gradcam.methods import METHODS, upsample
from cifar_fastai.models import resnet18

K, C, N = 6, 4, 5       # channels, classes, pictures


def close(a, b, rtol=1e-12, atol=1e-14): torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def chain_of(**parts): return nn.Sequential(OrderedDict(parts))


def gap(i, o): return {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(i, o)}


@pytest.fixture
def rng(): return torch.Generator().manual_seed(0)


@pytest.fixture
def gap_net():
    "The layer `a` hands on its input, so a picture is a map A of our choosing"
    torch.manual_seed(0)
    return chain_of(a=nn.Identity(), **gap(K, C)).double()


@pytest.fixture
def A(rng): return torch.randn(N, K, 3, 3, dtype=torch.float64, generator=rng)


@pytest.fixture
def target(): return torch.tensor([0, 3, 1, 2, 3])


@pytest.fixture
def small_resnet():
    "Our ResNet-18 with norms that have seen data, so that its channels differ"
    torch.manual_seed(0)
    net = resnet18()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data.uniform_(0.5, 1.5); m.bias.data.normal_(0, 0.2)
            m.running_mean.normal_(0, 0.2); m.running_var.uniform_(0.5, 1.5)
    return net.eval()


# ---- known beforehand --------------------------------------------------------------------------------------

def test_R1_raw_is_the_class_activation_map_over_its_size(gap_net, A, target):
    out = GradCAM(gap_net, "a")(A, target)
    cam = (gap_net.fc.weight[target][:, :, None, None] * A).sum(1).detach()      # Zhou et al. 2016
    close(out.raw, cam / 9)
    assert (out.raw < 0).any()                                                   # signed: no ReLU in `raw`


def test_R2_raw_sums_to_the_logit_without_its_bias(gap_net, A, target):
    out = GradCAM(gap_net, "a")(A, target)
    close(out.raw.sum((1, 2)), (out.logits - gap_net.fc.bias.detach()).gather(1, target[:, None])[:, 0])


def test_R3_three_methods_agree_under_global_pooling(gap_net, A, target):
    cam = GradCAM(gap_net, "a")
    close(cam(A, target, method="hirescam").raw, cam(A, target).raw)
    close(cam(A, target, method="xgradcam").raw, cam(A, target).raw)
    assert not torch.allclose(cam(A, target, method="layercam").raw, cam(A, target).raw)


def test_R4_layercam_and_plusplus_have_their_closed_forms(gap_net, A, target):
    A, w = A.abs(), gap_net.fc.weight.detach()[target][:, :, None, None]         # as after a ReLU
    cam = GradCAM(gap_net, "a")
    close(cam(A, target, method="layercam").raw.relu(), (w.relu() / 9 * A).sum(1).relu())
    weight = w.relu() / (2 + w * A.mean((2, 3), keepdim=True))
    close(cam(A, target, method="gradcam++").raw, (weight * A).sum(1))


def test_R4_plusplus_keeps_its_form_where_the_squares_of_gradients_underflow(gap_net, A, target):
    net, A = gap_net.float(), A.abs().float()
    net.fc.weight.data *= 1e-25
    w = net.fc.weight.detach()[target][:, :, None, None]
    close(GradCAM(net, "a")(A, target, method="gradcam++").raw, (w.relu() / 2 * A).sum(1), rtol=1e-5, atol=0)


def test_R5_under_flatten_the_weight_is_a_mean_and_hirescam_differs(rng):
    net = chain_of(a=nn.Identity(), flat=nn.Flatten(), fc=nn.Linear(K * 4, C)).double()
    A = torch.randn(N, K, 2, 2, dtype=torch.float64, generator=rng)
    W = net.fc.weight.detach().view(C, K, 2, 2)
    raw, hires = (GradCAM(net, "a")(A, 2, method=m).raw for m in ("gradcam", "hirescam"))
    close(raw, (W[2].mean((1, 2))[None, :, None, None] * A).sum(1))
    close(hires, (W[2] * A).sum(1))
    assert (raw - hires).abs().max() > 0.01


@pytest.mark.parametrize("inplace", [False, True])
def test_R6_captums_net_gives_captums_numbers(inplace):
    from captum.testing.helpers.basic_models import BasicModel_ConvNet_One_Conv
    net, x = BasicModel_ConvNet_One_Conv(inplace), torch.arange(16.).view(1, 1, 4, 4)
    close(GradCAM(net, "conv1")(x, 0).raw[0], torch.tensor([[11.25, 13.5], [20.25, 22.5]]))
    close(GradCAM(net, "relu1")(x, 0).raw[0], torch.tensor([[0, 4], [28, 32.5]]))


def relu_patterns(net, x, layer, out):
    "Logits with `layer`'s output replaced by `out`, and which units each ReLU let through"
    seen = []
    hooks = [m.register_forward_hook(lambda m, i, o: seen.append(o > 0))
             for m in net.modules() if isinstance(m, nn.ReLU)]
    hooks.append(net.get_submodule(layer).register_forward_hook(lambda m, i, o: out))
    try: logits = net(x)
    finally: [h.remove() for h in hooks]
    return logits, seen[-4:]            # layer4's: what stands below is not changed


@torch.no_grad()
def test_R7_channel_weights_are_finite_differences(small_resnet, rng):
    net, x, eps = small_resnet.double(), torch.randn(1, 3, 32, 32, dtype=torch.float64, generator=rng), 1e-6
    A, c = [], 4
    hook = net.layer3.register_forward_hook(lambda m, i, out: A.append(out.clone()))
    net(x); hook.remove()
    A, picks = A[0], torch.randperm(256, generator=rng)[:20]
    step = eps * F.one_hot(picks, 256).double()[:, :, None, None]
    xs = x.expand(len(picks), -1, -1, -1)
    (up, above), (down, below) = (relu_patterns(net, xs, "layer3", A + s) for s in (step, -step))
    flips = torch.stack([(a != b).flatten(1).any(1) for a, b in zip(above, below)]).any(0)
    alpha = channel_weights(net, x, "layer3", c)[picks]
    slope = (up - down)[:, c] / (2 * eps * 64)
    assert (~flips).sum() >= 15
    close(slope[~flips], alpha[~flips], rtol=1e-6, atol=1e-9 * alpha.abs().max())


def channel_weights(net, x, layer, c):
    "α of `GradCAM` itself, read off its raw maps: one GradCAM method that returns its weights as maps"
    seen = {}
    def spy(A, g):
        seen["w"] = METHODS["gradcam"](A, g)
        return seen["w"]
    METHODS["spy"] = spy
    try: GradCAM(net, layer)(x, c, method="spy")
    finally: del METHODS["spy"]
    return seen["w"].flatten()


@pytest.mark.parametrize("dtype, tight", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_R8_a_batch_is_its_pictures_one_by_one(small_resnet, rng, dtype, tight):
    xb, target = torch.randn(8, 3, 16, 16, generator=rng), torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    cam, order = GradCAM(small_resnet.to(dtype), "layer3"), torch.randperm(8, generator=rng)
    for method in METHODS:
        whole = cam(xb, target, method=method).raw
        alone = torch.cat([cam(x[None], int(t), method=method).raw for x, t in zip(xb, target)])
        close(whole, alone, rtol=tight, atol=tight)
        close(cam(xb[order], target[order], method=method).raw, whole[order], rtol=tight, atol=tight)
        assert (whole[0] - whole[1]).abs().max() > 1000 * tight      # the control: pictures differ
    close(cam(xb, target, bs=3).maps, cam(xb, target).maps, rtol=0, atol=1e-4)


def state_of(net):
    return {"weights": {k: v.clone() for k, v in net.state_dict().items()},
            "modes": {k: m.training for k, m in net.named_modules()},
            "flags": {k: p.requires_grad for k, p in net.named_parameters()},
            "grads": {k: p.grad if p.grad is None else p.grad.clone() for k, p in net.named_parameters()},
            "hooks": {k: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
                      for k, m in net.named_modules()},
            "rng": torch.get_rng_state(), "grad mode": torch.is_grad_enabled()}


def assert_same_state(a, b):
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)


class Boom(nn.Module):
    def forward(self, x): raise RuntimeError("boom")


@pytest.fixture
def half_frozen(small_resnet):
    net = small_resnet.train()
    net.layer2[0].bn1.eval()
    net.layer1.requires_grad_(False)
    net(torch.randn(4, 3, 16, 16)).sum().backward()          # some .grad to keep, some None
    return net


def test_R9_a_net_in_train_mode_gives_the_eval_result_and_is_left_as_it_was(half_frozen, rng):
    net, xb = half_frozen, torch.randn(4, 3, 16, 16, generator=rng)
    before = state_of(net)
    out = GradCAM(net, ["layer1", "layer3"])(xb)
    assert_same_state(before, state_of(net))
    want = GradCAM(net.eval(), ["layer1", "layer3"])(xb)
    for layer in want.raw: close(out.raw[layer], want.raw[layer], rtol=0, atol=0)
    with torch.no_grad(): close(out.logits, net(xb), rtol=1e-4, atol=1e-5)


def test_R9_so_it_is_when_forward_raises(half_frozen):
    net = half_frozen
    net.fc = nn.Sequential(net.fc, Boom())
    before = state_of(net)
    xb = torch.ones(2, 3, 16, 16)
    with pytest.raises(RuntimeError, match="boom"): GradCAM(net, ["layer1", "layer3"])(xb)
    with pytest.raises(InputError): GradCAM(net, ["layer1", "layer1.0.relu"])(xb)
    assert_same_state(before, state_of(net))


def test_R9_the_check_itself_sees_a_change(half_frozen):
    before = state_of(half_frozen)
    half_frozen.layer3.eval()
    with pytest.raises(AssertionError): assert_same_state(before, state_of(half_frozen))


def test_R9_generators_stand_where_they_stood_though_the_net_draws():
    class Noisy(nn.Module):
        def forward(self, x): return x + 0.1 * torch.rand_like(x)
    net = chain_of(conv=nn.Conv2d(3, C, 3), noise=Noisy(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
    x, before = torch.ones(1, 3, 8, 8), torch.get_rng_state()
    GradCAM(net, "conv")(x)
    assert torch.equal(torch.get_rng_state(), before)
    net(x)
    assert not torch.equal(torch.get_rng_state(), before)


# ---- other libraries ---------------------------------------------------------------------------------------

def their_steps(raw):
    "What pytorch-grad-cam does after the channel sum: ReLU, min-max, cv2 resize, min-max"
    from pytorch_grad_cam.utils.image import scale_cam_image
    return scale_cam_image(scale_cam_image(np.maximum(raw.numpy(), 0), (32, 32)))


@pytest.mark.parametrize("layer", ["layer1", "layer2", "layer3", "layer4"])
def test_R10_pytorch_grad_cam_draws_the_same_maps(small_resnet, rng, layer):
    import pytorch_grad_cam as theirs
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    net, xb, target = small_resnet, torch.randn(2, 3, 32, 32, generator=rng), [7, 0]
    net.fc.weight.data *= 1e5           # their ++ adds 1e-6 to α's denominator: next to 2g² it must not count
    kin = {"gradcam": theirs.GradCAM, "hirescam": theirs.HiResCAM, "xgradcam": theirs.XGradCAM,
           "layercam": theirs.LayerCAM, "gradcam++": theirs.GradCAMPlusPlus}
    assert set(kin) == set(METHODS)
    for method, kind in kin.items():
        ours = their_steps(GradCAM(net, layer)(xb, torch.tensor(target), method=method).raw)
        with kind(model=net, target_layers=[net.get_submodule(layer)]) as cam:
            want = cam(input_tensor=xb, targets=[ClassifierOutputTarget(t) for t in target])
        assert np.abs(ours - want).max() <= 1e-5, method
        assert want.std() > 0.05                             # a map, not a blank


@pytest.mark.parametrize("layer", ["layer1", "layer2.0.conv1", "layer3", "layer4.1.bn2"])
def test_R11_captum_finds_the_same_numbers(small_resnet, rng, layer):
    from captum.attr import LayerGradCam
    xb, target = torch.randn(3, 3, 32, 32, generator=rng), torch.tensor([7, 0, 3])
    raw = GradCAM(small_resnet, layer)(xb, target).raw
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = LayerGradCam(small_resnet, small_resnet.get_submodule(layer)).attribute(
            xb, target=target, relu_attributions=True)[:, 0]
    close(raw.relu(), want.detach(), rtol=0, atol=1e-5)
    assert want.max() > 1e-3


# ---- in place, frozen, autocast ----------------------------------------------------------------------------

class Residual(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, K, 3), nn.BatchNorm2d(K), nn.ReLU(inplace)
        self.bn2, self.fc, self.inplace = nn.BatchNorm2d(K), nn.Linear(K, C), inplace

    def forward(self, x):
        first = self.relu(self.conv(x))
        x = self.bn(self.bn2(first))
        if self.inplace: x += first
        else: x = x + first
        return self.fc(F.relu(x, inplace=self.inplace).mean((2, 3)))


@pytest.mark.parametrize("layer", ["conv", "relu", "bn", "bn2"])
def test_R12_operations_in_place_change_nothing(layer, rng):
    torch.manual_seed(0)
    twin, net = Residual(False), Residual(True)
    twin.bn.bias.data.fill_(-0.3)
    net.load_state_dict(twin.state_dict())
    xb = torch.randn(4, 3, 12, 12, generator=rng)
    for method in METHODS:
        out, want = (GradCAM(m, layer)(xb, [0, 1, 2, 3], method=method) for m in (net, twin))
        close(out.raw, want.raw, rtol=0, atol=1e-6); close(out.logits, want.logits, rtol=0, atol=1e-6)
    if layer in ("conv", "bn"): assert (grab(twin, layer, xb) < 0).any()         # a ReLU would have shown


def grab(net, layer, xb):
    seen = []
    hook = net.get_submodule(layer).register_forward_hook(lambda m, i, out: seen.append(out.detach().clone()))
    net.eval()(xb); hook.remove()
    return seen[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_R12_cuda_agrees_with_the_cpu(small_resnet, rng):
    xb = torch.randn(4, 3, 32, 32, generator=rng)
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        for method in METHODS:
            want = GradCAM(small_resnet.cpu(), "layer3")(xb, method=method)
            out = GradCAM(small_resnet.cuda(), "layer3")(xb.cuda(), want.target.cuda(), method=method)
            close(out.maps.cpu(), want.maps, rtol=0, atol=1e-4)
    finally: torch.backends.cudnn.allow_tf32 = tf32


@pytest.mark.parametrize("state", ["frozen", "no_grad", "autocast", "nested"])
def test_R13_frozen_no_grad_and_autocast_change_nothing(small_resnet, rng, state):
    net, xb = small_resnet, torch.randn(4, 3, 16, 16, generator=rng)
    cam = GradCAM(net, ["layer2", "layer4"])
    want = cam(xb)
    if state == "frozen": net.requires_grad_(False); out = cam(xb)
    if state == "no_grad":
        with torch.no_grad(): out = cam(xb)
    if state == "autocast":
        with torch.autocast("cpu", torch.bfloat16): out = cam(xb); rough = cam(xb, autocast=True)
        assert (rough.raw["layer2"] - want.raw["layer2"]).abs().max() > 1e-5     # the control: bf16 differs
    if state == "nested":
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16): net(xb); out = cam(xb)
    for layer in want.raw: close(out.raw[layer], want.raw[layer], rtol=0, atol=1e-5)


# ---- flat maps, the right corner, refusals -----------------------------------------------------------------

def test_R14_all_negative_map_is_zero_without_a_warning(gap_net, A):
    gap_net.fc.weight.data.fill_(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = GradCAM(gap_net, "a")(A.abs(), 0)
    assert (out.raw < 0).all() and torch.equal(out.maps, torch.zeros(N, 3, 3, dtype=torch.float64))


def test_R14_constant_map_is_finite(gap_net, A):
    for method in METHODS:
        for value, shown in ((1.0, 1.0), (0.0, 0.0)):
            gap_net.fc.weight.data.fill_(1)
            out = GradCAM(gap_net, "a")(torch.full_like(A, value), 0, method=method)
            close(out.maps, torch.full((N, 3, 3), shown, dtype=torch.float64))


def test_R14_faint_map_still_fills_its_range(gap_net, A):
    net = gap_net.float()
    net.fc.weight.data *= 1e-30
    out = GradCAM(net, "a")(A.float().abs(), 0)
    lit = (out.raw > 0).flatten(1).any(1)
    assert out.maps.isfinite().all() and lit.any() and (out.maps.amax((1, 2))[lit] == 1).all()


def test_R14_nan_weights_raise_with_the_layers_name(small_resnet):
    small_resnet.layer2[1].conv2.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"layer 'layer2\.1\.conv2' has NaN"):
        GradCAM(small_resnet, "layer3")(torch.randn(2, 3, 32, 32))


def red_counter():
    "Class 0: how much more red than green and blue there is, by patches of 4×4"
    conv = nn.Conv2d(3, 2, 4, stride=4)
    conv.weight.data.zero_(); conv.bias.data.zero_()
    conv.weight.data[0] = torch.tensor([2., -1, -1])[:, None, None] / 32
    conv.weight.data[1] = 0.01
    net = chain_of(conv=conv, relu=nn.ReLU(), **gap(2, 2))
    net.fc.weight.data = torch.tensor([[1., 0.01], [0., 1.]])
    return net


@pytest.mark.parametrize("top, left", [(0, 0), (0, 32), (16, 0), (16, 32), (8, 20)])
@pytest.mark.parametrize("method", list(METHODS))
def test_R15_the_maximum_lies_in_the_red_square(method, top, left, rng):
    x = torch.rand(1, 1, 24, 40, generator=rng).expand(1, 3, -1, -1).clone() * 0.3      # grey, and not square
    x[0, 0, top:top + 8, left:left + 8] = 1
    out = GradCAM(red_counter(), "relu")(x, 0, method=method)
    row, col = divmod(out.maps[0].argmax().item(), 40)
    assert top <= row < top + 8 and left <= col < left + 8
    assert out.maps.shape == (1, 24, 40) and out.raw.shape == (1, 6, 10)


class Odd(nn.Module):
    "A body, a layer that forward forgets, and one that runs twice"
    def __init__(self):
        super().__init__()
        self.body, self.forgotten, self.again = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
        self.fc = nn.Linear(3, C)

    def forward(self, x): return self.fc(self.again(self.again(self.body(x))).mean((2, 3)))


@pytest.mark.parametrize("layer, says", [
    ("boddy", "Did you mean body"), ("fc", r"no map.*'again'"), ("again", "runs twice.*Choose"),
    ("forgotten", "never reached.*Choose one that runs")])
def test_R16_a_layer_that_will_not_do_is_refused_with_the_way_out(layer, says):
    with pytest.raises(ValueError, match=says): GradCAM(Odd(), layer)(torch.randn(2, 3, 12, 12))


@pytest.mark.parametrize("target, y, says", [
    (C, None, "target 4 .*from 0 to 3"), (-1, None, "target -1 .*from 0 to 3"),
    (torch.tensor([0, 1, 2]), None, "2 pictures"), ("true", None, "Give y"),
    ("true", torch.tensor([1]), "y has .*2 pictures"), ("ture", None, "Did you mean true"),
    (torch.tensor([0, 9]), None, "target 9"), (0.5, None, "class number"), (True, None, "class number")])
def test_R16_a_target_that_will_not_do_is_refused_with_the_way_out(target, y, says):
    with pytest.raises(ValueError, match=says): GradCAM(Odd(), "body")(torch.randn(2, 3, 12, 12), target, y)


# ---- leaks -------------------------------------------------------------------------------------------------

def live_tensors():
    gc.collect()
    mine = [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]
    return len(mine), sum(t.untyped_storage().nbytes() for t in mine)


def resident() -> int:
    "Bytes of this process in memory now; its peak would be that of the tests before"
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_R17_two_hundred_calls_leave_nothing_behind():
    torch.manual_seed(0)
    net, xb = Residual(True), torch.randn(16, 3, 32, 32)
    cam = GradCAM(net, ["conv", "bn"])
    for _ in range(20): cam(xb)
    before, size = live_tensors(), resident()
    for _ in range(200): cam(xb)
    assert live_tensors() == before
    assert resident() - size < 4 << 20                               # 200 kept maps are 30 MB
    assert not any(m._forward_hooks for m in net.modules())
    kept = cam(xb)
    assert kept and live_tensors() != before                         # the control: this one is seen


# ---- a trained net -----------------------------------------------------------------------------------------

def scenes(digits, rng):
    "8×8 digits, doubled, each somewhere in a 32×32 picture of noise; row and column of its corner"
    x = torch.rand(len(digits), 1, 32, 32, generator=rng) * 0.5
    corners = torch.empty(len(digits), 2, dtype=int)
    big = F.interpolate(digits[:, None], scale_factor=2)
    for k, (r, c) in enumerate(torch.randint(0, 17, (len(x), 2), generator=rng)):
        place, corners[k] = x[k, :, r:r + 16, c:c + 16], torch.stack([r, c])
        torch.maximum(place, big[k], out=place)
    return x - 0.3, corners


def conv(i, o, stride):
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))


@pytest.fixture(scope="module")
def trained():
    "A net of 66,000 weights that reads such digits (about 97 %), and 200 scenes it has not seen"
    from sklearn.datasets import load_digits
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rng, data = torch.Generator().manual_seed(0), load_digits()
        digits, y = torch.tensor(data.images / 16, dtype=torch.float32), torch.tensor(data.target)
        net = chain_of(layer1=conv(1, 16, 2), layer2=conv(16, 32, 1), layer3=conv(32, 64, 2),
                       layer4=conv(64, 64, 1), **gap(64, 10))
        train, test = torch.randperm(len(y), generator=rng).split((len(y) - 200, 200))
        opt = torch.optim.Adam(net.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 0.01, total_steps=150)
        for _ in range(6):
            xs, _ = scenes(digits[train], rng)
            for i in torch.randperm(len(train), generator=rng).split(64)[:25]:
                opt.zero_grad(); F.cross_entropy(net(xs[i]), y[train][i]).backward()
                opt.step(); schedule.step()
        return net.eval(), *scenes(digits[test], rng), y[test]


def test_R18_the_net_was_trained(trained):
    net, xb, _, y = trained
    with torch.no_grad(): assert (net(xb).argmax(1) == y).float().mean() > 0.9


@pytest.fixture(scope="module")
def controls(trained):
    "Insertion and deletion areas of maps that know nothing, and of maps that know where things tend to stand"
    net, xb, *_ = trained
    with torch.no_grad(): predicted = net(xb).argmax(1)
    return [insertion_deletion(net, xb, maps, predicted, steps=8)
            for maps in (random_maps(200, (32, 32), (8, 8)), blob_map(200, (32, 32)))]


@pytest.mark.parametrize("method", list(METHODS))
def test_R18_maps_beat_noise_and_a_centred_blob(trained, controls, method):
    net, xb, *_ = trained
    out = GradCAM(net, "layer4")(xb, method=method)
    insertion, deletion = insertion_deletion(net, xb, upsample(out.raw, (32, 32)), out.target, steps=8)
    for inserted, deleted in controls:
        assert paired_ci(insertion, inserted)[1] > 0        # the whole interval lies on the right side
        assert paired_ci(deletion, deleted)[2] < 0


def test_R18_a_map_upside_down_loses(trained, controls):
    net, xb, *_ = trained
    out = GradCAM(net, "layer4")(xb)
    insertion, deletion = insertion_deletion(net, xb, -upsample(out.raw, (32, 32)), out.target, steps=8)
    assert paired_ci(insertion, controls[0][0])[2] < 0 < paired_ci(deletion, controls[0][1])[1]


def hit_rate(maps, corners):
    "How often the hottest place lies on the digit: the pointing game (Zhang et al. 2018); chance is .25"
    peak = maps.flatten(1).argmax(1)
    off = torch.stack([peak // 32, peak % 32], 1) - corners
    return ((off >= 0) & (off < 16)).all(1).float().mean().item()


@pytest.mark.parametrize("layer", ["layer1", "layer2", "layer3", "layer4", "layer4+layer2"])
@pytest.mark.parametrize("method", list(METHODS))
def test_the_hottest_place_is_where_the_digit_is(trained, method, layer):
    net, xb, corners, y = trained
    least = .5 if (method, layer) == ("gradcam", "layer1") else .85        # its channels know no class yet
    assert hit_rate(GradCAM(net, layer)(xb, y, method=method).maps, corners) > least


def test_noise_hits_the_digit_by_chance_and_a_blob_no_better(trained):
    _, xb, corners, _ = trained
    assert hit_rate(random_maps(200, (32, 32), (8, 8)), corners) < .4
    assert hit_rate(GradCAM(trained[0], "layer4")(xb).maps.flip(1, 2), corners) < .5


def ranks(maps): return maps.flatten(1).argsort(dim=1).argsort(dim=1).double()


def rank_correlation(a, b):
    "Spearman's, picture by picture, then the mean"
    a, b = (r - r.mean(1, keepdim=True) for r in (ranks(a), ranks(b)))
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean().item()


def test_R19_maps_follow_the_weights(trained):
    import copy
    net, xb, _, y = trained
    net, want = copy.deepcopy(net), GradCAM(net, "layer4")(xb, y).raw
    assert rank_correlation(GradCAM(net, "layer4")(xb, y).raw, want) == pytest.approx(1)
    torch.manual_seed(1)
    for layer in ("fc", "layer4", "layer3", "layer2", "layer1"):                 # cascading, from the top
        for m in net.get_submodule(layer).modules():
            if hasattr(m, "reset_parameters"): m.reset_parameters()
        assert abs(rank_correlation(GradCAM(net, "layer4")(xb, y).raw, want)) < 0.5, layer
