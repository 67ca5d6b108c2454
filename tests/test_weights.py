"""A trained net is one file without code, with all that is needed to use it."""
import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import tiny_net

from cifar_fastai.errors import InputError
from cifar_fastai.models import create_model
from cifar_fastai.weights import About, load_weights, save_weights

ABOUT = About("tiny", "bn", ("cat", "größe, <b>", "frog"), 16, (.1, .2, .3), (.4, .5, .6))


@pytest.fixture
def net(tiny_registered):
    net = tiny_net(3).to(memory_format=torch.channels_last)
    net(torch.randn(8, 3, 16, 16))          # running averages that are no longer those of a new net
    return net


def test_a_net_comes_back_with_all_that_is_known_of_it(net, tmp_path):
    save_weights(tmp_path / "w ü.safetensors", net, ABOUT)
    there, about = load_weights(tmp_path / "w ü.safetensors")
    x = torch.randn(4, 3, 16, 16)
    assert about == ABOUT and not there.training and net.training
    assert torch.allclose(there(x), net.eval()(x), atol=1e-5)
    assert not torch.allclose(create_model("tiny", 3).eval()(x), there(x), atol=1e-3), "as a new net does not"


def test_group_norm_and_the_real_nets_come_back_too(tmp_path):
    for model, norm in (("custom_resnet", "gn"), ("resnet18", "bn")):
        net = create_model(model, 3, norm=norm).eval()
        save_weights(tmp_path / "w", net, replace(ABOUT, model=model, norm=norm))
        x = torch.randn(1, 3, 16, 16)
        torch.testing.assert_close(load_weights(tmp_path / "w")[0](x), net(x))


def test_the_file_is_plain_tensors_and_text_that_others_can_read(net, tmp_path):
    digest = save_weights(tmp_path / "w", net, ABOUT)
    with safe_open(tmp_path / "w", framework="np") as f:
        assert set(f.keys()) == set(net.state_dict()) and len(digest) == 64
        assert json.loads(f.metadata()["cifar_fastai"])["classes"] == list(ABOUT.classes)
    assert b"pickle" not in (tmp_path / "w").read_bytes()


def test_saving_changes_neither_layout_nor_device_of_the_net(net, tmp_path):
    save_weights(tmp_path / "w", net, ABOUT)
    assert net.layer1[0].weight.is_contiguous(memory_format=torch.channels_last)


class Hostile:
    def __reduce__(self): return (open, ("/tmp/hostile", "w"))


def broken(path, net, how):
    save_weights(path, net, ABOUT)
    good = path.read_bytes()
    tensors = {k: v.contiguous() for k, v in net.state_dict().items()}
    meta = {"cifar_fastai": json.dumps({**vars(ABOUT)})}
    if how == "missing": path.unlink()
    elif how == "cut": path.write_bytes(good[:-50])
    elif how == "empty": path.write_bytes(b"")
    elif how == "pickle": path.write_bytes(pickle.dumps(Hostile()))
    elif how == "zip": torch.save(tensors, path)
    elif how == "no metadata": save_file(tensors, path)
    elif how == "a list": save_file(tensors, path, {"cifar_fastai": "[1]"})
    elif how == "no JSON": save_file(tensors, path, {"cifar_fastai": "{"})
    elif how == "another field": save_file(tensors, path, {"cifar_fastai": '{"x": 1}'})
    elif how == "another net": save_weights(path, net, replace(ABOUT, model="resnet18"))
    elif how == "unknown net": save_weights(path, net, replace(ABOUT, model="resnet81"))
    elif how == "other classes": save_weights(path, net, replace(ABOUT, classes=("a", "b")))
    elif how == "a tensor less": save_file({k: v for k, v in tensors.items() if k != "fc.bias"}, path, meta)
    else: path.mkdir()


HOW = ["missing", "cut", "empty", "pickle", "zip", "no metadata", "a list", "no JSON", "another field",
       "another net", "unknown net", "other classes", "a tensor less"]


@pytest.mark.parametrize("how", HOW)
def test_what_is_no_net_of_ours_is_refused_in_one_line(net, tmp_path, how):
    path = tmp_path / "w.safetensors"
    broken(path, net, how)
    with pytest.raises(InputError, match="w.safetensors.*Give the weights.safetensors of a run") as error:
        load_weights(path)
    assert "\n" not in str(error.value)


def test_another_net_takes_what_fits_and_the_rest_is_named(tmp_path, caplog, tiny_registered):
    from tiny import tiny_net
    torch.manual_seed(0)
    trained, other = tiny_net(4), tiny_net(7)
    about = About("tiny", "bn", tuple("abcd"), 16, (.5,) * 3, (.2,) * 3)
    save_weights(tmp_path / "w.safetensors", trained, about)
    head = other.fc.weight.detach().clone()
    other.train()
    net, about = load_weights(tmp_path / "w.safetensors", into=other)
    assert net is other and net.training and about.classes == tuple("abcd")
    now = other.state_dict()
    same = {k for k, v in trained.state_dict().items() if v.shape == now[k].shape and v.equal(now[k])}
    assert same >= {"layer1.0.weight", "layer3.1.running_mean"} and torch.equal(other.fc.weight, head)
    assert "left out of" in caplog.text and "fc.bias, fc.weight" in caplog.text


def test_a_net_that_nothing_fits_is_refused(tmp_path, tiny_registered):
    from tiny import tiny_net
    about = About("tiny", "bn", tuple("abcd"), 16, (.5,) * 3, (.2,) * 3)
    save_weights(tmp_path / "w.safetensors", tiny_net(4), about)
    with pytest.raises(InputError, match="nothing in .* fits this net"):
        load_weights(tmp_path / "w.safetensors", into=torch.nn.Linear(3, 2))
