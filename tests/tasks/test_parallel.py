"""`ParallelSNN` and `AdditionSNN`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import trainer
from spikingjelly.activation_based import functional, neuron
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import (
    AdditionDataModule,
    AdditionSNN,
    ConvexReconstruction,
    ParallelSNN,
    TwoHeadedAdditionSNN,
    XORDataModule,
    calibrate,
    reconstruct,
)
from lightning_cvxsnn.network import LIF, undisturbed
from lightning_cvxsnn.network.neurons import neuron_of
from lightning_cvxsnn.network.readout import find_readout
from lightning_cvxsnn.patterns import Neuron


def network(**options):
    torch.manual_seed(0)
    sizes = {"in_features": 2, "width": 12, "last_width": 24, "depth": 4, "branches": 2}
    return ParallelSNN(**(sizes | options))


def reference(net, x, **constants):
    """The same branches of spikingjelly's own nodes; their spikes ``[T, N, P]`` and last charges ``[N, P]``."""
    spikes, charges = [], []
    for branch in net.branches:
        steps = x.transpose(0, 1)
        for affine in branch[::2]:
            node = neuron.LIFNode(**constants, step_mode="s")
            currents = affine(steps)
            before = []
            for current in currents:
                v = node.v if isinstance(node.v, torch.Tensor) else torch.full_like(current, node.v)
                before.append((v - (v - 0.0) / node.tau + current).detach())
                spike = node(current)
                before.append(spike)
            steps = torch.stack(before[1::2])
            charge = before[-2]
        spikes.append(steps)
        charges.append(charge)
    return torch.cat(spikes, -1), torch.cat(charges, -1)


@pytest.mark.parametrize("reduction", ["last", "mean", "membrane", "voltage", "all"])
@pytest.mark.parametrize("v_reset", [None, 0.0])
def test_it_is_a_stack_of_spikingjellys_neurons_bit_for_bit(reduction, v_reset):
    net = network(reduction=reduction, tau=3.0, v_threshold=0.2, reset="soft" if v_reset is None else "hard")
    x = torch.randn(7, 9, 2)
    spikes, charges = reference(net, x, tau=3.0, v_threshold=0.2, v_reset=v_reset, decay_input=False)
    assert 0.02 < spikes.mean() < 0.9
    if reduction == "all":
        expected = net.readout(spikes).transpose(0, 1)
    else:
        expected = net.readout(
            {"last": spikes[-1], "mean": spikes.mean(0), "membrane": (charges >= 0).float(), "voltage": charges}[
                reduction
            ]
        )
    assert torch.equal(net(x), expected)
    assert torch.equal(net(x), expected)  # no state is left


def test_hidden_layers_without_biases():
    net = network(bias=False)
    assert [name for name, _ in net.named_parameters() if "bias" in name] == ["readout.bias"]


def test_widths_are_split_over_branches():
    net = network(depth=4, branches=3)
    assert [tuple(p.shape) for n, p in net.branches[2].named_parameters() if "weight" in n] == [(4, 2), (4, 4), (8, 4)]
    assert net.readout.weight.shape == (2, 24)
    assert len(network(depth=2).branches[0]) == 2


def test_branches_draw_their_constants_from_the_ranges():
    net = network(branches=12, tau=(1.05, 100.0), v_threshold=(0.5, 2.0), reset="mixed")
    drawn = [{neuron_of(m) for m in branch[1::2]} for branch in net.branches]
    assert all(len(constants) == 1 for constants in drawn)  # a branch's layers share them
    constants = [c.pop() for c in drawn]
    assert len(set(constants)) == 12
    assert all(1.05 <= c.tau <= 100 and 0.5 <= c.v_threshold <= 2 for c in constants)
    assert {c.v_reset for c in constants} == {None, 0.0}
    assert max(c.leak for c in constants) - min(c.leak for c in constants) > 0.5
    assert {neuron_of(b[1]) for b in network(branches=2).branches} == {
        Neuron(tau=100.0, decay_input=False, v_reset=None)
    }


def test_a_fresh_process_restores_the_constants(tmp_path):
    net = network(tau=(1.05, 100.0), v_threshold=(0.5, 2.0), reset="mixed", branches=4)
    x = torch.randn(20, 9, 2)
    run = trainer(max_epochs=1, limit_train_batches=1, num_sanity_val_steps=0)
    run.fit(net, DataLoader(TensorDataset(x, torch.arange(20) % 2), batch_size=20))
    run.save_checkpoint(tmp_path / "net.ckpt")
    torch.save({"x": x, "logits": net(x).detach()}, tmp_path / "answers.pt")
    script = """
import sys, torch
from lightning_cvxsnn import ParallelSNN
torch.manual_seed(123)  # constants drawn anew would be others
net = ParallelSNN.load_from_checkpoint(sys.argv[1])
saved = torch.load(sys.argv[2])
assert torch.equal(net(saved["x"]), saved["logits"])
"""
    command = [sys.executable, "-c", script, tmp_path / "net.ckpt", tmp_path / "answers.pt"]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("reduction", "kind"),
    [("last", "none"), ("mean", "none"), ("membrane", "none"), ("voltage", "none"), ("all", "all")],
)
def test_its_readout_is_proved(reduction, kind):
    net = network(reduction=reduction)
    with undisturbed(net):
        found = find_readout(net, torch.randn(7, 9, 2))
    assert (found.name, found.reduction.kind) == ("readout", kind)


@pytest.mark.parametrize("reduction", ["last", "mean", "membrane", "voltage", "all"])
def test_every_layer_gets_a_gradient(reduction):
    net = network(reduction=reduction, tau=3.0, v_threshold=0.2)
    net(torch.randn(30, 9, 2)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


@pytest.mark.parametrize("loss", ["cross_entropy", "hinge"])
@pytest.mark.parametrize("reduction", ["last", "membrane", "mean"])
def test_it_trains_with_the_callback(loss, reduction, recwarn):
    data = XORDataModule(steps=4, sizes=(200, 50, 50))
    callback = ConvexReconstruction(loss=loss, witnesses="calibrated", beta=0.01)
    run = trainer(callback, max_epochs=2, num_sanity_val_steps=0)
    run.fit(network(loss=loss, reduction=reduction), data)
    assert callback.reports[0].accepted
    assert not [w for w in recwarn if "is not what is solved" in str(w.message) or "loss" in str(w.message).lower()]
    assert run.callback_metrics["val_accuracy"] >= 0.5


@pytest.mark.parametrize("witnesses", ["gaussian_standard", "gaussian_normalized", "gaussian_orthogonal", "calibrated"])
def test_samplers_work_on_branches_and_leave_constants_alone(witnesses):
    net = network(tau=(2.0, 100.0), reset="mixed")
    before = {n: b.clone() for n, b in net.named_buffers()}
    weights = [p.clone() for p in net.branches.parameters()]
    data = XORDataModule(steps=5, sizes=(300, 5, 5))
    data.setup("fit")
    report = reconstruct(net, data.train_dataloader(), witnesses=witnesses, beta=0.01)
    assert report.accepted
    assert report.silent < 12
    assert all(torch.equal(b, before[n]) for n, b in net.named_buffers())
    changed = [not torch.equal(p, w) for p, w in zip(net.branches.parameters(), weights, strict=True)]
    assert all(changed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 1}, "depth=1. Expected an integer >= 2"),
        ({"branches": 0}, "branches=0. Expected an integer >= 1"),
        ({"branches": 5}, "width=12. Expected a multiple of branches=5"),
        ({"tau": 1.0}, "tau=1.0. Expected a finite number above 1"),
        ({"tau": (3.0, 2.0)}, r"tau=\(3.0, 2.0\). Expected a finite number above 1, or a range"),
        ({"v_threshold": 0.0}, "v_threshold=0.0. Expected a finite number above 0"),
        ({"reset": "none"}, "reset='none'. Expected one of"),
        ({"reduction": "sum"}, "reduction='sum'. Expected one of"),
        ({"loss": "squared"}, "loss='squared'. Expected one of"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(MisconfigurationException, match=message):
        network(**options)


def test_the_hinge_is_one_class_against_the_rest():
    net = network(loss="hinge")
    logits, y = torch.tensor([[0.5, -2.0], [0.0, 3.0]]), torch.tensor([0, 1])
    assert net._loss_of(logits, y) == pytest.approx((0.5 + 0 + 1 + 0) / 2)


# -- addition


class Perfect(nn.Module):
    """A readout that adds: what it is given is ignored, the columns seen by the first layer are not."""

    def __init__(self, base):
        super().__init__()
        self.base, self.weight, self.seen = base, torch.zeros(1), None

    def forward(self, spikes):
        sums = (self.seen * (self.base - 1)).round().long().sum(-1)
        return F.one_hot(sums, 2 * self.base).float()


def test_carries_are_fed_back():
    net = AdditionSNN(base=7, last_width=8, branches=1)
    net.readout = Perfect(7)
    net.branches[0][0].register_forward_pre_hook(lambda _, args: setattr(net.readout, "seen", args[0]))
    data = AdditionDataModule(base=7, sizes=(5, 5, 50), test_digits=(30,))
    data.setup("test")
    x, y = data.tests[0].tensors
    assert torch.equal(net.add((x[..., :2] * 6).round().long()), y)
    run = trainer()
    (metrics,) = run.test(net, datamodule=data, verbose=False)
    assert metrics == {"test_accuracy_30_digits": 1.0, "test_sums_30_digits": 1.0}


def test_step_by_step_is_the_whole_sequence():
    """Where the network's own carries are the true ones, `add` sees what the forward sees."""
    torch.manual_seed(0)
    net = AdditionSNN(base=3, last_width=400, branches=2, tau=1 / 0.9)
    data = AdditionDataModule(base=3, sizes=(300, 5, 200), test_digits=(12,))
    data.setup("fit")
    report = reconstruct(net, data.train_dataloader(), witnesses="calibrated", beta=0.003, gap_tolerance=1e-3)
    assert report.accepted
    x, y = data.tests[0].tensors
    sums = net.add((x[..., :2] * 2).round().long())
    right = (sums == y).all(1)
    assert right.float().mean() > 0.5
    assert torch.equal(net(x)[right].argmax(-1), sums[right])
    assert all(m.v is None for m in net.modules() if isinstance(m, LIF))


def test_adding_repeats():
    net = AdditionSNN(base=2, last_width=8, branches=1)
    first = net.add(torch.ones(3, 4, 2, dtype=torch.long))
    assert torch.equal(first, net.add(torch.ones(3, 4, 2, dtype=torch.long)))
    assert bool((first >= 0).all() and (first < 4).all())


def test_calibration_reaches_every_branch():
    net = network(depth=3)
    data = XORDataModule(steps=5, sizes=(200, 5, 5))
    data.setup("fit")
    layers = calibrate(net, data.train_dataloader(), rate=0.2)
    assert [layer.name for layer in layers] == [f"branches.{k}.{i}" for k in (0, 1) for i in (1, 3)]
    assert all(layer.after.rate == pytest.approx(0.2, abs=0.07) for layer in layers)
    functional.reset_net(net.branches)


def test_two_heads_are_trained_and_solved_together(recwarn):
    torch.manual_seed(0)
    net = TwoHeadedAdditionSNN(base=3, last_width=300, branches=2, tau=1 / 0.9, carry_weight=0.5)
    data = AdditionDataModule(base=3, sizes=(300, 150, 100), test_digits=(5, 10), random_carry=True)
    data.setup("fit")
    x, y = data.train.tensors
    heads = net.convex_forward(x)
    digit = F.cross_entropy(heads["digit"].flatten(0, 1), (y % 3).flatten())
    carry = F.cross_entropy(heads["carry"].flatten(0, 1), (y // 3).flatten())
    assert float(net._loss_of(*net._rows((x, y)))) == pytest.approx(float(digit + 0.5 * carry), rel=1e-5)
    answers = net(x).argmax(-1)
    assert torch.equal(answers, heads["digit"].argmax(-1) + 3 * heads["carry"].argmax(-1))
    callbacks = [ConvexReconstruction(readout=name, l1_ratio=0.0) for name in ("readout", "carry_readout")]
    run = trainer(*callbacks, max_epochs=1, num_sanity_val_steps=0)
    run.fit(net, data)
    assert all(callback.reports[0].accepted for callback in callbacks)
    metrics = run.test(net, datamodule=data, verbose=False)[1]
    assert metrics["test_accuracy_10_digits"] > 0.6
    assert not [w for w in recwarn if "ConvexReconstruction solves" in str(w.message)]


def test_a_carry_of_negative_weight_is_refused():
    with pytest.raises(MisconfigurationException, match="carry_weight=-1"):
        TwoHeadedAdditionSNN(carry_weight=-1)


def test_two_heads_are_restored(tmp_path):
    net = TwoHeadedAdditionSNN(base=3, last_width=8, branches=2, carry_weight=0.25)
    run = trainer(max_epochs=1)
    run.strategy.connect(net)
    run.save_checkpoint(tmp_path / "net.ckpt")
    twin = TwoHeadedAdditionSNN.load_from_checkpoint(tmp_path / "net.ckpt")
    assert twin.carry_weight == 0.25
    x = torch.rand(3, 4, 3)
    assert torch.equal(net(x), twin(x))
