import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import FEATURES, ConvNet, Net, images, loader, state, trainer
from spikingjelly.activation_based import layer
from torch import nn

from lightning_cvxsnn import ConvexReconstruction, LitSNN, prune, reconstruct


def sparse(net, keep=7):
    with torch.no_grad():
        net.readout.weight[:, torch.randperm(net.readout.in_features)[keep:]] = 0
    return net


@pytest.mark.parametrize("reduction", ["last", "mean", "sum", "all"])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_the_same_outputs_from_fewer_units(reduction, step_mode):
    torch.manual_seed(0)
    net, x = sparse(Net(reduction, step_mode)), torch.rand(9, FEATURES)
    smaller = prune(net, x)
    assert smaller.hidden[0].weight.shape == (7, FEATURES)
    assert smaller.readout.weight.shape == (3, 7)
    more = torch.rand(50, FEATURES)
    torch.testing.assert_close(smaller(more), net(more))


@pytest.mark.parametrize("norm", [False, True], ids=["", "batch norm"])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_the_same_outputs_from_fewer_channels(step_mode, norm):
    torch.manual_seed(0)
    net, x = ConvNet(step_mode=step_mode, pool=layer.MaxPool2d(2), norm=norm), images()[0]
    net(x)  # statistics that differ from channel to channel
    net.eval()
    with torch.no_grad():
        net.readout.weight.view(3, 5, 9)[:, [1, 4]] = 0
        net.readout.weight.view(3, 5, 9)[:, 2, 3:] = 0  # a channel with some places left stays
    smaller = prune(net, x[:9])
    assert smaller.hidden[0].weight.shape == (3, 2, 3, 3)
    assert (smaller.hidden[0].out_channels, smaller.readout.in_features) == (3, 27)
    torch.testing.assert_close(smaller(x), net(x))
    torch.testing.assert_close(smaller.train()(x), net.train()(x))


def test_after_a_fit_the_smaller_network_answers_the_same_and_trains_on():
    torch.manual_seed(0)
    net, rows = Net(width=64), loader()
    callback = ConvexReconstruction(beta=0.3)
    trainer(callback).fit(net, rows)
    assert callback.reports[0].accepted
    smaller = prune(sparse(net, 20), next(iter(rows))[0])
    torch.testing.assert_close(smaller(rows.dataset.tensors[0]), net(rows.dataset.tensors[0]))
    before = state(smaller)
    trainer().fit(smaller, rows)
    assert not torch.equal(smaller.hidden[0].weight, before["hidden.0.weight"])


def test_what_a_solve_leaves_unused_goes():
    torch.manual_seed(0)
    net, rows = Net(width=64), loader()
    report = reconstruct(net, rows, beta=0.3)
    smaller = prune(net, next(iter(rows))[0])
    assert smaller.readout.in_features == report.active < 64


def test_the_original_is_not_touched():
    net = sparse(Net()).train()
    net.hidden[1](torch.rand(2, 2, 24))  # a state of the user's
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.rand(4, FEATURES)
    v, rng = net.hidden[1].v.clone(), torch.get_rng_state()
    smaller = prune(net, x)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert torch.equal(net.hidden[1].v, v)
    assert torch.equal(torch.get_rng_state(), rng)
    assert net.training
    assert smaller.training
    assert smaller.hidden[1].training


def test_example_input_array_of_the_module():
    net = sparse(Net())
    with pytest.raises(MisconfigurationException, match="example_input_array"):
        prune(net)
    net.example_input_array = torch.rand(3, FEATURES)
    assert prune(net).readout.in_features == 7


def test_a_checkpoint_of_the_smaller_network(tmp_path):
    net = sparse(LitSNN(hidden=[16, 16]), 5)
    x = torch.rand(3, 8, 8)
    smaller = prune(net, x)
    saving = trainer()
    saving.strategy.connect(smaller)
    saving.save_checkpoint(tmp_path / "small.ckpt")
    again = LitSNN.load_from_checkpoint(tmp_path / "small.ckpt", hidden=[16, 5])
    assert torch.equal(again(x), smaller(x))


def test_a_readout_without_weights_is_refused():
    net = Net()
    nn.init.zeros_(net.readout.weight)
    with pytest.raises(MisconfigurationException, match="no unit would be left"):
        prune(net, torch.rand(4, FEATURES))


class Rigid(Net):
    """A network whose input currents depend on its width."""

    def steps(self, x):
        return super().steps(x) * self.readout.in_features / 24


def test_a_width_elsewhere_is_refused():
    with pytest.raises(RuntimeError, match="answers differently"):
        prune(sparse(Rigid()), torch.rand(40, FEATURES))


class TwoHeads(Net):
    """Another head over the same units, which keeps its width."""

    def __init__(self):
        super().__init__()
        self.other = layer.Linear(24, 2)

    def forward(self, x):
        answers = super().forward(x)
        self.other(torch.zeros(5, self.hidden[0].out_features))
        return answers


def test_another_part_that_needs_the_old_width_is_told():
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match=r"Without the 17 unused units of 'hidden.0' the network fails: .*Expected"):
        prune(sparse(TwoHeads()), torch.rand(9, FEATURES), readout="readout")
