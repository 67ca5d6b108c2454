"""The table of a net, and the weights that it does not use."""
import torch
from tiny import tiny_net
from torch import nn

from cifar_fastai.models import custom_resnet, model_summary, unused_weights


def test_the_summary_names_layers_shapes_parameters_kernels_shares_and_work():
    lines = model_summary(custom_resnet()).splitlines()
    (conv,) = [line for line in lines if "2,359,296" in line and "(0)" in line]
    assert conv.split() == ["│", "│", "└─Conv2d", "(0)", "[1,", "512,", "4,", "4]", "[1,", "512,", "4,", "4]",
                            "2,359,296", "35.89%", "[3,", "3]", "37,748,736"]
    assert "Total params: 6,573,130" in lines and lines[-1] == "Unused: none"


def test_weights_that_no_output_depends_on_are_named_and_counted():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.idle = tiny_net(), nn.Conv2d(8, 8, 3)
        def forward(self, x): return self.net(x)
    assert unused_weights(Idle(), 16) == ["idle.weight", "idle.bias"]
    assert model_summary(Idle(), 16).splitlines()[-1] == "Unused: idle.weight, idle.bias (584 weights)"


def test_a_frozen_weight_is_a_used_one_and_the_net_stays_as_it_was():
    net = tiny_net().train()
    net.layer1[0].weight.requires_grad_(False)
    before, drawn = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    model_summary(net, 16)
    assert unused_weights(net, 16) == []
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and net.training
    assert torch.equal(drawn, torch.get_rng_state()) and not net.layer1[0].weight.requires_grad
