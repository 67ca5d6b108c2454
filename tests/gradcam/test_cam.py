"Grad-CAM's manners: which layers, which targets, which models, and what it leaves alone"
import copy
import re
from collections import OrderedDict
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_fastai.errors import InputError, UnknownName
from cifar_fastai.gradcam.cam import GradCAM, find_layers, undisturbed
from cifar_fastai.gradcam.methods import (
    DETAIL,
    METHODS,
    SIGNED,
    heatmap,
    heatmaps,
    upsample,
    with_detail,
)
from cifar_fastai.models import MODELS


class Net(nn.Module):
    "Two convolutions, two branches side by side, a head"
    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem  = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8), nn.ReLU(inplace=True))
        self.body  = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False), norm(8))
        self.left  = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1)
        self.head  = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.body(self.stem(x)), inplace=True)
        return self.head((F.relu(self.left(x)) * self.right(x).sigmoid()).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net()
    net.head.weight.data *= 100         # so that maps are of order 0.1
    return net


@pytest.fixture
def xb(): return torch.randn(4, 3, 12, 16, generator=torch.Generator().manual_seed(1))


def close(a, b, atol=1e-6): torch.testing.assert_close(a, b, rtol=0, atol=atol)


def plain_gradcam(model, layer, xb, target):
    "Eq. 1 the long way: the whole graph, one picture at a time, double precision, no cut"
    model, raw = copy.deepcopy(model).double().eval(), []
    def keep(m, i, out):
        raw.append(out)
        return out.clone()
    model.get_submodule(layer).register_forward_hook(keep)
    for x, t in zip(xb.double(), target):
        logits = model(x[None])
        A = raw.pop()
        g, = torch.autograd.grad(logits[0, t], A)
        raw.insert(0, (g.mean((2, 3), keepdim=True) * A).sum(1).detach())
    return torch.cat(raw[::-1])


# ---- layers ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("layers, names", [
    ("body", ["body"]), ("stem.0", ["stem.0"]), (r"left|right", ["left", "right"]), (r"stem\.\d", None),
    (re.compile("b.dy"), ["body"]), (["right", "body"], ["right", "body"]), (["body", "bod."], ["body"]),
    (("stem", re.compile("l.*")), ["stem", "left"])])
def test_layers_are_found_by_name_and_by_expression(net, layers, names):
    found = find_layers(net, layers)
    assert list(found) == (names or ["stem.0", "stem.1", "stem.2"])
    assert all(found[k] is net.get_submodule(k) for k in found)


def test_layers_are_found_by_module(net):
    assert list(find_layers(net, net.body)) == ["body"]
    assert list(find_layers(net, [net.left, "stem", net.stem[1]])) == ["left", "stem", "stem.1"]


@pytest.mark.parametrize("layers, says", [
    ("bodi", "Did you mean body"), ("stem.7", "Did you mean stem.[0-2]"), ("stem.(", "stem"),
    ("zzz", "Choose from: body, head, left"), (None, "unknown layer None"), (7, "unknown layer 7"),
    ([], "no layer was given"), (nn.Conv2d(8, 8, 1), "Conv2d is not in the model"), ("", "unknown layer ''")])
def test_an_unknown_layer_is_refused_with_the_nearest_names(net, layers, says):
    with pytest.raises(InputError, match=re.escape(says) if "[" not in says else says): GradCAM(net, layers)


def test_several_layers_come_from_one_pass_and_equal_single_ones(net, xb):
    names, passes = ["left", "stem", "body", "body.0", "right"], []
    net.head.register_forward_hook(lambda *a: passes.append(1))
    out = GradCAM(net, names)(xb, 2)
    assert list(out.raw) == list(out.maps) == names and len(passes) == 1
    for name in names:
        alone = GradCAM(net, name)(xb, 2)
        close(out.raw[name], alone.raw); close(out.maps[name], alone.maps, atol=1e-5)
    assert out.raw["stem"].shape == (4, 12, 16) and out.raw["left"].shape == (4, 6, 8)


@pytest.mark.parametrize("layer", ["stem.0", "stem.1", "stem", "body", "left", "right"])
def test_a_cut_graph_gives_what_the_whole_graph_gives(net, xb, layer):
    target = torch.tensor([0, 3, 1, 1])
    close(GradCAM(net, layer)(xb, target).raw, plain_gradcam(net, layer, xb, target).float())


def test_there_is_no_graph_below_the_layer_and_no_gradient_of_a_weight(net, xb):
    graph, weights = {}, list(net.parameters())
    for name in ("stem", "body", "left", "head"):
        net.get_submodule(name).register_forward_hook(
            lambda m, i, out, name=name: graph.__setitem__(name, out.requires_grad))
    net.head.register_forward_hook(lambda *a: graph.update(weights=any(w.requires_grad for w in weights)))
    out = GradCAM(net, "left")(xb)
    assert graph == {"stem": False, "body": False, "left": False, "head": True, "weights": False}
    assert not any(t.requires_grad for t in (out.maps, out.raw, out.logits))
    assert all(w.requires_grad and w.grad is None for w in weights)


def test_two_extractors_on_one_model_do_not_meet(net, xb):
    a, b = GradCAM(net, "body"), GradCAM(net, "body")
    want = a(xb).raw
    b(xb.flip(0)); net.eval()(xb)
    close(a(xb).raw, want, atol=0)


def test_hooks_of_others_stay_and_have_their_say(net, xb):
    hook = net.body.register_forward_hook(lambda m, i, out: out * 2)
    doubled = GradCAM(net, "body")(xb, 1).raw
    assert len(net.body._forward_hooks) == 1
    hook.remove()
    assert (doubled - GradCAM(net, "body")(xb, 1).raw).abs().max() > 1e-4


# ---- targets -----------------------------------------------------------------------------------------------

def test_a_target_can_be_said_in_many_ways(net, xb):
    cam, y = GradCAM(net, "body"), torch.tensor([3, 0, 1, 2])
    want = cam(xb, y)
    for target in (y.int(), y.tolist(), y.numpy(), np.uint8(y)): close(cam(xb, target).raw, want.raw, atol=0)
    close(cam(xb, "true", y=y).raw, want.raw, atol=0)
    predicted = cam(xb)
    assert torch.equal(predicted.target, predicted.logits.argmax(1))
    close(cam(xb, "pred", y=y).raw, predicted.raw, atol=0)
    for two in (2, np.int64(2), torch.tensor(2)): close(cam(xb, two).raw, cam(xb, [2, 2, 2, 2]).raw, atol=0)
    assert (want.raw - predicted.raw).abs().max() > 0.01


def test_target_and_logits_come_back(net, xb):
    out = GradCAM(net, "body")(xb, 3)
    assert out.target.tolist() == [3, 3, 3, 3] and out.target.dtype == torch.int64
    with torch.no_grad(): close(out.logits, net.eval()(xb))
    with pytest.raises(FrozenInstanceError): out.target = None


def test_each_picture_has_its_own_target(net, xb):
    cam = GradCAM(net, "body")
    mixed = cam(xb, [0, 1, 2, 3]).raw
    for i in range(4): close(mixed[i], cam(xb, i).raw[i])


def test_chunks_give_what_the_whole_batch_gives(net, xb):
    cam, passes = GradCAM(net, ["stem", "body"]), []
    want = cam(xb, [0, 1, 2, 3], method="layercam")
    net.head.register_forward_hook(lambda m, i, out: passes.append(len(out)))
    out = cam(xb, [0, 1, 2, 3], method="layercam", bs=3)
    assert passes == [3, 1] and out.target.tolist() == [0, 1, 2, 3]
    for name in want.raw: close(out.raw[name], want.raw[name])
    close(out.logits, want.logits)


# ---- pictures ----------------------------------------------------------------------------------------------

class Picture(torch.Tensor):
    "Stands for fastai's TensorImage"


def test_tensor_subclasses_come_out_plain(net, xb):
    class Category(torch.Tensor): pass
    y = torch.tensor([3, 0, 1, 2])
    out = GradCAM(net, "body")(xb.as_subclass(Picture), "true", y=y.as_subclass(Category))
    assert {type(t) for t in (out.maps, out.raw, out.target, out.logits)} == {torch.Tensor}
    close(out.raw, GradCAM(net, "body")(xb, y).raw, atol=0)


def test_pictures_that_ask_for_gradients_get_none(net, xb):
    xb.requires_grad_()
    GradCAM(net, "body")(xb)
    assert xb.grad is None and xb.requires_grad


def in_inference_mode(net, xb):
    with torch.inference_mode(): GradCAM(net, "body")(xb)


def made_in_inference_mode(net, xb):
    with torch.inference_mode(): xb = xb + 1
    GradCAM(net, "body")(xb)


@pytest.mark.parametrize("call, says", [
    (in_inference_mode, "Use torch.no_grad"), (made_in_inference_mode, "Use torch.no_grad"),
    (lambda net, xb: GradCAM(net, "body")(xb[0]), r"give x\[None\]"),
    (lambda net, xb: GradCAM(net, "body")(xb.numpy()), "type ndarray"),
    (lambda net, xb: GradCAM(net, "body")(xb[:0]), "shape .0, 3, 12, 16"),
    (lambda net, xb: GradCAM(net, "body")(xb.byte()), "Give floats"),
    (lambda net, xb: GradCAM(net, "body")(xb, bs=0), "bs is 0"),
    (lambda net, xb: GradCAM(net, "body")(xb, method="gradcam+"), r"Did you mean gradcam"),
    (lambda net, xb: GradCAM(net, "body")(xb / 0 * 0), "picture 0 of xb has NaN"),
    (lambda net, xb: GradCAM(nn.Sequential(net.stem), "0")(xb), r"not logits \(4, classes\)"),
    (lambda net, xb: GradCAM(net.half(), "body")(xb * 60000), "picture 0 of xb|overflow")])
def test_pictures_that_will_not_do_are_refused_with_the_way_out(net, xb, call, says):
    with pytest.raises(InputError, match=says): call(net, xb)


def test_the_worse_of_two_pictures_is_named(net, xb):
    xb[2, 0, 5, 5] = float("nan")
    with pytest.raises(InputError, match="picture 2 of xb"): GradCAM(net, "body")(xb)


# ---- maps to look at ---------------------------------------------------------------------------------------

def test_upsampling_keeps_pixel_centres():
    row = torch.tensor([[[0., 1.]]])
    close(upsample(row, (1, 4)), torch.tensor([[[0, 0.25, 0.75, 1]]]))
    close(upsample(row.mT, (4, 1)), torch.tensor([[[0, 0.25, 0.75, 1]]]).mT)


def test_each_heatmap_fills_its_own_range_and_keeps_zero():
    raw = torch.tensor([[[0., 2.]], [[-3., 0.5]], [[-1., -2.]], [[0., 0.]]])
    close(heatmap(raw, (1, 2)), torch.tensor([[[0., 1.]], [[0., 1.]], [[0., 0.]], [[0., 0.]]]))
    close(heatmap(torch.tensor([[[1., 2.]]]), (1, 2)), torch.tensor([[[0.5, 1.]]]))     # no min-max


def test_maps_have_the_pictures_size_and_come_from_raw(net, xb):
    for method in METHODS:
        out = GradCAM(net, "body")(xb, method=method)
        assert out.maps.shape == (4, 12, 16) and out.maps.min() >= 0 and out.maps.max() == 1
        close(out.maps, heatmap(out.raw, (12, 16)), atol=0)


def test_a_one_by_one_map_warns():
    from torchvision.models import resnet18
    net, x = resnet18(weights=None, num_classes=10), torch.randn(2, 3, 32, 32)
    with pytest.warns(UserWarning, match="'layer4' gives a 1×1 map"): out = GradCAM(net, "layer4")(x, 0)
    close(out.maps, out.maps[:, :1, :1].expand(2, 32, 32))


# ---- models ------------------------------------------------------------------------------------------------

def of_torchvision(name):
    import torchvision.models as models
    return getattr(models, name)(weights=None, num_classes=10)


def of_timm(name):
    return pytest.importorskip("timm").create_model(name, pretrained=False, num_classes=10)


def of_fastai():
    "What vision_learner makes: Sequential(body, head)"
    body = nn.Sequential(*list(of_torchvision("resnet18").children())[:-2])
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(512), nn.Dropout(0.25),
                         nn.Linear(512, 10, bias=False))
    return nn.Sequential(body, head)


def vgg16_bn():
    "Without its 120 million weights between the layers of the head"
    with torch.device("meta"):
        net = of_torchvision("vgg16_bn")
        net.classifier = nn.Linear(512 * 7 * 7, 10)
    net.to_empty(device="cpu")
    for m in net.modules():
        if hasattr(m, "reset_parameters"): m.reset_parameters()
    return net


ZOO = {"resnet18": (lambda: of_torchvision("resnet18"), "layer3"),
       "resnet50": (lambda: of_torchvision("resnet50"), "layer4"),
       "densenet121": (lambda: of_torchvision("densenet121"), "features"),
       "vgg16_bn": (vgg16_bn, "features.40"),
       "mobilenet_v3": (lambda: of_torchvision("mobilenet_v3_small"), "features.10"),
       "convnext": (lambda: of_torchvision("convnext_tiny"), "features.6"),
       "timm resnet": (lambda: of_timm("resnet18"), "layer3"),
       "timm efficientnet": (lambda: of_timm("efficientnet_b0"), "blocks.4"),
       "fastai": (of_fastai, "0.7"),
       **{f"our {name} {norm}": (lambda name=name, norm=norm: MODELS[name](norm=norm), "layer3")
          for name in MODELS for norm in ("bn", "gn")}}


@pytest.mark.parametrize("name", list(ZOO))
def test_any_model_gives_the_plain_result(name):
    torch.manual_seed(0)
    make, layer = ZOO[name]
    size = 16 if name.startswith("our") and "airbench" not in name else 64    # whose layer3 is 1×1 there
    model, xb = make().double(), torch.randn(2, 3, size, size, dtype=torch.float64)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_var.uniform_(0.5, 1.5); m.running_mean.normal_(0, 0.1)
    out, want = GradCAM(model, layer)(xb, [1, 7]), plain_gradcam(model, layer, xb, [1, 7])
    assert model.training and want.flatten(1).std(1).min() > 0
    torch.testing.assert_close(out.raw, want, rtol=1e-9, atol=1e-9 * want.abs().max().item())


def test_a_channels_last_model_gives_the_same_maps():
    torch.manual_seed(0)
    net, xb = MODELS["custom_resnet"](), torch.randn(4, 3, 16, 16)
    want = GradCAM(net, "layer2")(xb)
    last = net.to(memory_format=torch.channels_last)
    for pictures in (xb, xb.contiguous(memory_format=torch.channels_last)):
        out = GradCAM(last, "layer2")(pictures, want.target)
        close(out.maps, want.maps, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_work_in_their_dtype(net, xb, dtype):
    want, out = GradCAM(net, "body")(xb, 1), GradCAM(copy.deepcopy(net).to(dtype), "body")(xb, 1)
    assert out.logits.dtype == dtype and out.raw.dtype == out.maps.dtype == torch.float32
    close(out.raw / want.raw.abs().max(), want.raw / want.raw.abs().max(), atol=0.05)


def test_a_compiled_model_is_taken_as_what_it_wraps(net, xb):
    cam = GradCAM(torch.compile(net), "body")
    assert list(cam.layers) == ["body"]
    close(cam(xb).raw, GradCAM(net, "body")(xb).raw, atol=0)


class ChannelsLast(nn.Module):
    "Its stage works on (N,H,W,C), as those of a Swin do"
    def __init__(self):
        super().__init__()
        self.stem, self.stage = nn.Conv2d(3, 8, 2, 2), nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
        self.permute, self.head = nn.Identity(), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stage(self.stem(x).permute(0, 2, 3, 1))
        return self.head(F.gelu(self.permute(x.permute(0, 3, 1, 2))).mean((2, 3)))


def test_a_layer_whose_channels_come_last_has_no_map(xb):
    torch.manual_seed(0)
    net = ChannelsLast().double()
    for pictures in (xb.double(), xb.double()[..., :12]):
        with pytest.raises(InputError, match="'stage' has no map"): GradCAM(net, "stage")(pictures)
        out = GradCAM(net, "permute")(pictures, 1)
        torch.testing.assert_close(out.raw, plain_gradcam(net, "permute", pictures, [1] * len(xb)))


def test_layers_may_come_from_a_generator(net):
    assert GradCAM(net, (name for name in ["left", "body"])).names == ("left", "body")


def test_a_model_without_parameters_works(xb):
    class Bright(nn.Module):
        def __init__(self): super().__init__(); self.pool = nn.AvgPool2d(4)
        def forward(self, x): x = self.pool(x); return torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1)
    out = GradCAM(Bright(), "pool")(xb.double(), 0)
    close(out.raw, F.avg_pool2d(xb.double(), 4).mean(1) / 12)        # a mean over 3 channels and 12 places


class FrozenBody(Net):
    def forward(self, x):
        with torch.no_grad(): x = self.body(self.stem(x))
        return self.head((F.relu(self.left(x)) * self.right(x.detach()).sigmoid()).mean((2, 3)))


def test_a_body_that_runs_under_no_grad_has_a_map_at_its_end_and_none_inside(xb):
    torch.manual_seed(0)
    net = FrozenBody()
    assert GradCAM(net, "body")(xb, 0).raw.abs().max() > 0
    with pytest.raises(InputError, match="no gradient reaches layer 'stem'.*Choose a later"):
        GradCAM(net, "stem")(xb)


def test_a_layer_on_which_the_logits_do_not_depend_is_refused(net, xb):
    class Aside(Net):
        def forward(self, x): self.left(self.stem(x)); return super().forward(x) * 1
    aside = nn.Sequential(OrderedDict(net=net))
    assert GradCAM(aside, "net.body")(xb, 0).raw.any()
    class Unused(nn.Module):
        def __init__(self): super().__init__(); self.net, self.probe = net, nn.Conv2d(3, 1, 1)
        def forward(self, x): self.probe(x); return self.net(x)
    with pytest.raises(InputError, match="do not depend on it"): GradCAM(Unused(), ["net.body", "probe"])(xb)


def test_an_alias_that_the_model_rewrites_does_not_reach_what_was_kept(xb):
    class Alias(nn.Module):
        def __init__(self): super().__init__(); self.conv, self.same = nn.Conv2d(3, 4, 3), nn.Identity()
        def forward(self, x):
            x = self.conv(x)
            y = self.same(x)            # the same tensor …
            logits = y.mean((2, 3))
            x.zero_()                   # … that is wiped afterwards
            return logits
    torch.manual_seed(0)
    model = Alias()
    with torch.no_grad(): A = model.conv(xb)
    close(GradCAM(model, "same")(xb, 2).raw, A[:, 2] / A[0, 0].numel())


# ---- in the middle of training -----------------------------------------------------------------------------

def test_a_look_between_loss_and_backward_changes_no_gradient(net, xb):
    twin, y = copy.deepcopy(net), torch.tensor([0, 1, 2, 3])
    for model, look in ((net, True), (twin, False)):
        loss = F.cross_entropy(model.train()(xb), y)
        if look: GradCAM(model, "stem")(xb)
        loss.backward()
    for a, b in zip(net.parameters(), twin.parameters()): close(a.grad, b.grad, atol=0)
    for a, b in zip(net.buffers(), twin.buffers()): close(a, b, atol=0)
    assert net.training and net.stem[1].num_batches_tracked == 1


def test_undisturbed_puts_each_flag_back(net):
    net.body.eval(); net.left.requires_grad_(False)
    def modes(): return [m.training for m in net.modules()]
    def flags(): return [p.requires_grad for p in net.parameters()]
    before = modes(), flags()
    with pytest.raises(KeyError), undisturbed(net, torch.device("cpu")):
        assert not any(modes()) and not any(flags())
        raise KeyError
    assert before == (modes(), flags()) and set(before[0]) == set(before[1]) == {True, False}


def test_a_net_with_its_own_train_method_is_not_asked(net, xb):
    def refuse(mode=True): raise AssertionError("train() was called")
    net.train = refuse
    GradCAM(net, "body")(xb)
    assert net.training and net.stem.training


# ---- one map of several layers, and maps on one scale ------------------------------------------------------

def test_detail_is_added_at_the_height_of_the_map_it_refines():
    raw = torch.tensor([[[4., 0], [-2, 1]]])
    fine = torch.tensor([[[0., 0, 0, 0], [0, 8, 0, 0], [0, 0, -5, 0], [0, 0, 0, 2]]])
    got, coarse = with_detail(raw, fine), upsample(raw, (4, 4))
    added = torch.tensor([[[0., 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, .25]]])    # over its top
    close(got, coarse + DETAIL * 4 * added)
    close(with_detail(10 * raw, 7 * fine), 10 * got, atol=1e-5)         # in units of the first
    against = raw - 5                                                   # its top is -1
    close(with_detail(against, fine), upsample(against, (4, 4)))        # nothing to refine
    assert torch.equal(with_detail(raw), raw)


def test_detail_of_two_layers_is_added_one_after_the_other():
    raw, a, b = torch.tensor([[[2.]]]), torch.tensor([[[1., 0], [0, 0]]]), torch.tensor([[[0., 0], [0, 3]]])
    close(with_detail(raw, a, b), 2 + DETAIL * 2 * torch.tensor([[[1., 0], [0, 1]]]))
    close(with_detail(raw, torch.zeros(1, 2, 2)), torch.full((1, 2, 2), 2.))      # an empty one adds none


@pytest.mark.parametrize("method", list(METHODS))
def test_a_map_of_two_layers_is_the_first_by_the_method_with_layercams_detail_of_the_other(net, xb, method):
    coarse = GradCAM(net, "left")(xb, 2, method=method).raw
    fine = GradCAM(net, "stem")(xb, 2, method="layercam").raw
    both = GradCAM(net, "left+stem")(xb, 2, method=method)
    close(both.raw, with_detail(coarse, fine))
    close(both.maps, heatmap(with_detail(coarse, fine), xb.shape[-2:]))
    assert both.names == ("left+stem",) and not any(m._forward_hooks for m in net.modules())


def test_maps_of_one_layer_and_of_several_come_from_one_pass(net, xb):
    calls, cam = [], GradCAM(net, ["body", "left+stem", "left"])
    handle = net.register_forward_hook(lambda *_: calls.append(1))
    out = cam(xb)
    handle.remove()
    assert calls == [1] and list(out.raw) == ["body", "left+stem", "left"]
    assert list(cam.layers) == ["body", "left", "stem"]
    close(out.raw["left"], GradCAM(net, "left")(xb).raw)
    assert out.maps_by_layer is out.maps and list(GradCAM(net, "body")(xb).raw_by_layer) == ["body"]


@pytest.mark.parametrize("layer, says", [
    ("left+stemm", "stemm.*Did you mean stem"), ("left+", "''"), ("nothing+stem", "nothing")])
def test_a_part_that_is_not_there_is_named(net, layer, says):
    with pytest.raises(UnknownName, match=says): find_layers(net, layer)


def test_a_plus_in_an_expression_stays_an_expression(net):
    assert list(find_layers(net, r"(stem|body)+")) == ["stem", "body"]


def test_maps_of_several_classes_share_the_largest_values_scale():
    strong, faint = torch.tensor([[[8., 2], [0, -4]]]), torch.tensor([[[0., 1], [2, -16]]])
    a, b = heatmaps([strong, faint], (2, 2))
    assert a.tolist() == [[[1, .25], [0, 0]]] and b.tolist() == [[[0, .125], [.25, 0]]]
    a, b = heatmaps([strong, faint], (2, 2), signed=True)
    assert a.tolist() == [[[.5, .125], [0, -.25]]] and b.tolist() == [[[0, .0625], [.125, -1]]]
    assert heatmap(faint, (2, 2)).tolist() == [[[0, .5], [1, 0]]]                        # alone: its own
    assert not torch.stack(heatmaps([-strong.abs()] * 2, (2, 2))).any()                  # and 0 stays 0


def test_each_pictures_maps_have_a_scale_of_their_own_with_the_predicted_class_among_them(net, xb):
    cam, predicted = GradCAM(net, ["body", "left"]), GradCAM(net, "body")(xb)
    one, = cam.together(xb, [1])
    want = heatmaps([cam(xb, 1).raw["body"], predicted.raw], xb.shape[-2:])[0]
    close(one.maps["body"], want)
    close(one.raw["body"], cam(xb, 1).raw["body"])
    first, second = GradCAM(net, "body").together(xb, [None, 1])
    close(second.maps, want)
    top = torch.maximum(first.maps.amax((1, 2)), second.maps.amax((1, 2)))
    close(top, torch.ones(len(xb)))
    assert (second.maps.amax((1, 2)) < .999).any() or (first.maps.amax((1, 2)) < .999).any()


def test_signed_maps_are_refused_where_a_method_has_no_sign(net, xb):
    for method in METHODS.keys() - set(SIGNED):
        with pytest.raises(InputError, match="leaves out what speaks against a class. For signed"):
            GradCAM(net, "body").together(xb, [0], method=method, signed=True)
    for method in SIGNED:
        out, = GradCAM(net, "body").together(xb, [0], method=method, signed=True)
        assert out.maps.abs().max() <= 1 and (out.maps < 0).any()


def test_each_map_may_have_a_method_of_its_own_in_one_pass():
    torch.manual_seed(0)
    net, xb = MODELS["resnet18"]().eval(), torch.randn(3, 3, 32, 32)
    wanted = {"layer4+layer2": "gradcam", "layer1": "layercam", "layer3": "hirescam"}
    passes = []
    hook = net.register_forward_hook(lambda *_: passes.append(1))
    out = GradCAM(net, list(wanted))(xb, [1, 2, 3], method=wanted)
    assert len(passes) == 1 and out.names == tuple(wanted)
    for name, method in wanted.items():
        alone = GradCAM(net, name)(xb, [1, 2, 3], method=method).raw
        torch.testing.assert_close(out.raw[name], alone, rtol=1e-4, atol=1e-6 * alone.abs().max().item())
    hook.remove()
    other = GradCAM(net, "layer1")(xb, [1, 2, 3], method="gradcam").raw
    assert not torch.allclose(out.raw["layer1"], other, rtol=.1), "the method counts"


@pytest.mark.parametrize("method", [{"layer1": "gradcan"}, {}])
def test_a_method_for_each_map_is_asked_for(method):
    with pytest.raises(InputError, match="unknown method"):
        GradCAM(MODELS["custom_resnet"](), "layer1")(torch.randn(1, 3, 32, 32), method=method)


def test_maps_of_several_classes_are_taken_under_the_callers_autocast():
    torch.manual_seed(0)
    net, xb = MODELS["custom_resnet"]().eval(), torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        low, = GradCAM(net, "layer3").together(xb, [0], autocast=True)
        full, = GradCAM(net, "layer3").together(xb, [0])
    assert not torch.equal(low.raw, full.raw) and (low.maps - full.maps).abs().max() < .1
