"The nets: as many weights as published, all of them used, named as torchvision names them"
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from cifar_fastai.errors import InputError
from cifar_fastai.models import MODELS, create_model, custom_resnet, layer_groups, resnet18, zero_residuals

COUNTS = {"resnet18": 11_173_962, "resnet34": 21_282_122, "resnet50": 23_520_842, "resnet101": 42_512_970,
          "custom_resnet": 6_573_130, "airbench": 1_972_792}
STAGES = {"resnet18": "conv1 bn1 relu maxpool layer1 layer2 layer3 layer4 avgpool fc",
          "custom_resnet": "prep layer1 layer2 layer3 maxpool fc",
          "airbench": "stem layer1 layer2 layer3 maxpool fc"}
both_norms = pytest.mark.parametrize("norm", ["bn", "gn"])
all_nets = pytest.mark.parametrize("name", list(COUNTS))


def n_parameters(net): return sum(p.numel() for p in net.parameters())


def test_every_net_is_listed():
    ours = {name for name, net in MODELS.items() if net.__module__ == "cifar_fastai.models"}  # tests add some
    assert ours == set(COUNTS)


@all_nets
@both_norms
def test_net_has_the_published_number_of_parameters(name, norm):
    assert n_parameters(MODELS[name](norm=norm)) == COUNTS[name]
    assert n_parameters(MODELS[name](n_out=100, norm=norm)) > COUNTS[name]


@all_nets
@both_norms
def test_every_parameter_takes_part(name, norm):
    torch.manual_seed(0)
    net = MODELS[name](norm=norm)
    nn.functional.cross_entropy(net(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 3])).backward()
    trained = {k: p for k, p in net.named_parameters() if p.requires_grad}
    assert [k for k, p in trained.items() if p.grad is None or not p.grad.any()] == [] != list(trained)


def test_a_dead_layer_would_be_seen():
    net = resnet18()
    net.dead = nn.Conv2d(3, 3, 3)
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    assert [k for k, p in net.named_parameters() if p.grad is None] == ["dead.weight", "dead.bias"]


@pytest.mark.parametrize("name", list(STAGES))
def test_stages_are_named_as_in_torchvision(name):
    assert [k for k, _ in MODELS[name]().named_children()] == STAGES[name].split()


def test_resnet_has_every_key_of_torchvisions():
    from torchvision.models import resnet18 as published
    ours, theirs = resnet18(n_out=1000).state_dict(), published(weights=None).state_dict()
    assert list(ours) == list(theirs)
    assert [k for k in ours if ours[k].shape != theirs[k].shape] == ["conv1.weight"]


@all_nets
def test_no_convolution_has_a_bias_before_its_norm(name):
    convs = {k: m for k, m in MODELS[name]().named_modules() if isinstance(m, nn.Conv2d)}
    convs.pop("stem.0", None)               # of airbench, which no norm follows
    assert [k for k, m in convs.items() if m.bias is not None] == [] != list(convs)


@all_nets
def test_gn_leaves_no_batch_norm(name):
    kinds = [type(m) for m in MODELS[name](norm="gn").modules()]
    plain = [type(m) for m in MODELS[name]().modules()]
    assert nn.BatchNorm2d not in kinds and nn.GroupNorm not in plain
    assert kinds.count(nn.GroupNorm) == plain.count(nn.BatchNorm2d) > 0


def test_gn_is_layer_norm_over_a_whole_picture():
    norm, x = resnet18(norm="gn").bn1, torch.randn(2, 64, 8, 8)
    assert torch.allclose(norm(x), nn.functional.layer_norm(x, x.shape[1:]), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "custom_resnet"])
def test_stem_keeps_every_place_and_the_stages_halve_them(name):
    net, sizes = MODELS[name]().eval(), []
    for k, m in net.named_children():
        if k.startswith("layer"): m.register_forward_hook(lambda m, i, out: sizes.append(out.shape[-1]))
    with torch.no_grad(): net(torch.randn(1, 3, 32, 32))
    assert sizes == ([32, 16, 8, 4] if name == "resnet18" else [16, 8, 4])


@all_nets
@both_norms
def test_net_takes_grey_pictures_of_another_size(name, norm):
    with torch.no_grad():
        out = MODELS[name](n_out=7, n_in=1, norm=norm).eval()(torch.randn(2, 1, 40, 24))
    assert out.shape == (2, 7) and out.isfinite().all()


@all_nets
def test_a_seed_fixes_the_net(name):
    def out(seed):
        torch.manual_seed(seed)
        net = MODELS[name]().eval()
        with torch.no_grad(): return net(torch.ones(1, 3, 32, 32))
    assert torch.equal(out(3), out(3)) and not torch.equal(out(3), out(4))


def test_stem_starts_with_a_spread_of_the_root_of_two_by_fan_out():
    for net, stem in ((resnet18(), "conv1"), (custom_resnet(), "prep.0")):
        torch.manual_seed(0)
        weight = net.get_submodule(stem).weight
        assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


def test_residual_block_adds_what_comes_in():
    net = custom_resnet().eval()
    block, x = net.layer1[-1], torch.randn(2, 128, 4, 4)
    torch.testing.assert_close(block(x.clone()), x + nn.Sequential(*block)(x))


def test_a_net_can_be_made_by_name_and_by_function():
    assert n_parameters(create_model("custom_resnet")) == COUNTS["custom_resnet"]
    assert n_parameters(create_model(resnet18, 10)) == COUNTS["resnet18"]
    def own(n_out, n_in, norm): return nn.Conv2d(n_in, n_out, 1)
    assert create_model(own, n_out=5, n_in=2).weight.shape == (5, 2, 1, 1)


def test_a_net_survives_pickling():
    net = custom_resnet().eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), net(x))


@pytest.mark.parametrize("make, says", [
    (lambda: create_model("resnet81"), "resnet18"),
    (lambda: create_model(nn.Linear(1, 1)), "Give the function"),
    (lambda: resnet18(norm="bm"), "bn"),
    (lambda: custom_resnet(norm="layer"), "bn, gn"),
    (lambda: resnet18(n_out=0), "n_out is 0"),
    (lambda: custom_resnet(n_out=2.5), "n_out is 2.5"),
    (lambda: resnet18(n_out=True), "n_out is True"),
    (lambda: resnet18(n_in=0), "n_in is 0")])
def test_a_wrong_wish_is_refused_with_the_way_out(make, says):
    with pytest.raises(InputError, match=says): make()


def test_importing_the_nets_imports_neither_torchvision_nor_fastai():
    code = "import sys, cifar_fastai.models; print({'torchvision', 'fastai'} & set(sys.modules) or 'neither')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "neither"


@all_nets
def test_layer_groups_are_early_stages_late_stages_and_head(name):
    net = MODELS[name](n_out=3)
    early, late, head = layer_groups(net)
    assert [id(p) for p in [*early, *late, *head]] == [id(p) for p in net.parameters()]
    assert [id(p) for p in head] == [id(p) for p in net.fc.parameters()]
    assert id(late[0]) == id(next(net.layer3.parameters()))


def test_other_nets_are_split_where_they_say_so():
    body, head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)
    assert [len(g) for g in layer_groups(nn.Sequential(body, head))] == [2, 2]
    assert [len(g) for g in layer_groups(nn.Sequential(body, nn.ReLU()))] == [2]
    body.weight.requires_grad_(False)
    assert [len(g) for g in layer_groups(nn.Sequential(body, nn.ReLU(), head))] == [3]


def test_torchvisions_functions_stand_for_ours_of_the_same_name():
    from torchvision import models
    assert create_model(models.resnet34, n_out=3).conv1.kernel_size == (3, 3)
    with pytest.raises(InputError, match=r"torchvision's vgg11 is made for .* vgg11\(num_classes=3\)"):
        create_model(models.vgg11, n_out=3)


def test_airbench_is_the_small_net_of_its_paper():
    net = MODELS["airbench"]()
    shapes, x = [], torch.randn(2, 3, 32, 32)
    for part in (net.stem, net.layer1, net.layer2, net.layer3):
        x = part(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(24, 31, 31), (64, 15, 15), (256, 7, 7), (256, 3, 3)]
    trained = {n for n, p in net.named_parameters() if p.requires_grad}
    assert "stem.0.weight" not in trained and "layer1.2.weight" not in trained and "layer1.2.bias" in trained


def test_the_kernels_of_airbench_begin_by_passing_their_input_on():
    conv = MODELS["airbench"]().layer2[0]
    x = torch.randn(1, 64, 7, 7)
    assert torch.allclose(conv(x)[:, :64], x, atol=1e-6) and not torch.allclose(conv(x)[:, 64:128], x)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_block_without_residual_passes_its_shortcut_on(name):
    net = MODELS[name]()
    x, block = torch.randn(2, 64 if name == "resnet18" else 256, 8, 8).relu(), net.layer1[1]
    before = block.eval()(x)
    zero_residuals(net)
    assert torch.equal(block(x), x) and not torch.equal(before, x)
    net.train()
    net(torch.randn(4, 3, 16, 16)).square().sum().backward()
    last = block.bn2 if name == "resnet18" else block.bn3
    assert last.weight.grad.abs().max() > 0, "it can leave 0"


def test_a_net_without_such_blocks_is_refused():
    "In custom_resnet a ReLU follows the norm: at 0 it would never learn"
    with pytest.raises(InputError, match="residual blocks"): zero_residuals(custom_resnet())


def test_a_learner_can_start_from_such_blocks(learnable):
    from cifar_fastai.loaders import cifar_dataloaders
    from cifar_fastai.training import cifar_learner
    dls = cifar_dataloaders(learnable, 16, None, num_workers=0, device="cpu")
    last = lambda learn: learn.model.layer2[0].bn2.weight.abs().sum().item()
    assert last(cifar_learner(dls, resnet18, zero_residual=True)) == 0 < last(cifar_learner(dls, resnet18))
