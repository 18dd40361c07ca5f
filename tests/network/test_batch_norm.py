import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from lightning_cvxsnn.network import adapting_batch_norms, estimate_batch_norm, undisturbed


def conv_net():
    return nn.Sequential(
        layer.Conv2d(1, 4, 3, step_mode="m"),
        layer.BatchNorm2d(4, step_mode="m"),
        neuron.LIFNode(step_mode="m"),
        layer.Flatten(step_mode="m"),
    )


def test_statistics_are_those_of_all_rows():
    net = conv_net()
    x = torch.randn(2, 40, 1, 6, 6) * 3 + 5
    norms = adapting_batch_norms(net)
    with undisturbed(net):
        net.eval()
        estimate_batch_norm(net, norms, x.split(10, dim=1))
        conv = net[0](x).flatten(0, 1)
        assert torch.allclose(net[1].running_mean, conv.mean((0, 2, 3)), atol=1e-4)
        assert torch.allclose(net[1].running_var, conv.var((0, 2, 3)), rtol=0.1)
        assert not net[1].training
        assert net[1].momentum == 0.1
    assert torch.equal(net[1].running_mean, torch.zeros(4))
    assert net[1].training


def test_frozen_batch_norms_do_not_adapt():
    net = conv_net()
    net[1].eval()
    assert adapting_batch_norms(net) == []


def test_a_fresh_stack_is_alive_once_estimated():
    net = conv_net()
    x = torch.rand(4, 20, 1, 6, 6)
    with undisturbed(net), torch.no_grad():
        norms = adapting_batch_norms(net)
        net.eval()
        functional.reset_net(net)
        dead = net(x).mean()
        estimate_batch_norm(net, norms, [x])
        functional.reset_net(net)
        assert dead == 0
        assert net(x).mean() > 0.02
