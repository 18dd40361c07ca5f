from dataclasses import replace

import pytest
import torch
from networks import STEPS, Net, rows
from spikingjelly.activation_based import encoding, functional, layer, neuron
from torch import nn

from lightning_cvxsnn.network import ENCODER_DRAWS, TimeReduction, capture, join, observe, undisturbed
from lightning_cvxsnn.network.readout import Readout, find_readout


def captured(net, batches):
    with undisturbed(net):
        net.eval()
        readout = find_readout(net, batches[0])
        return readout, capture(net, readout, batches)


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("reduction", ["last", "mean", "sum", "all", "all batch first"])
@pytest.mark.parametrize("bias", [True, False])
def test_dictionary_times_readout_is_the_networks_forward(step_mode, reduction, bias):
    net = Net(reduction, step_mode, bias)
    batches = list(rows(50)[0].split(16))
    readout, found = captured(net, batches)
    assert readout.reduction.kind == reduction.split()[0]
    coef, intercept = readout.read()
    predicted = found.dictionary.to_dense() @ coef + (0.0 if intercept is None else intercept)
    assert torch.allclose(predicted.float(), found.outputs, atol=1e-5)
    if not reduction.startswith("all"):
        assert torch.allclose(found.outputs, torch.cat([net(x) for x in batches]), atol=1e-6)


def test_rows_of_all_are_grouped_by_sample():
    net = Net("all")
    x = rows(6)[0]
    _, found = captured(net, [x])
    assert torch.allclose(found.outputs.unflatten(0, (6, STEPS)), net(x).transpose(0, 1), atol=1e-6)


def test_counts_equal_spikingjelly_run_by_hand():
    net = Net("mean")
    x = rows(50)[0]
    _, found = captured(net, list(x.split(16)))
    functional.reset_net(net.hidden)
    spikes = torch.cat([_spikes(net, batch) for batch in x.split(16)], dim=1)
    assert found.dictionary.counts.dtype == torch.uint8
    assert torch.equal(found.dictionary.counts, spikes.sum(0).to(torch.uint8))
    assert found.dictionary.scale == 1 / STEPS


def _spikes(net, x):
    functional.reset_net(net.hidden)
    return net.hidden(net.steps(x))


class RateNet(Net):
    """The readout sees a firing rate that the network computed."""

    def forward(self, x):
        functional.reset_net(self.hidden)
        return self.readout(self.hidden(self.steps(x)).mean(0))


def test_a_rate_is_recognised_as_counts():
    net = RateNet()
    net.readout.step_mode = "s"
    x = rows(50)[0]
    readout, found = captured(net, list(x.split(16)))
    assert readout.reduction == TimeReduction("none", "static", 1)
    assert found.dictionary.counts.dtype == torch.uint8
    assert torch.allclose(found.dictionary.to_dense(), _spikes(net, x).mean(0).double())


class FlatNet(Net):
    """``SeqToANNContainer`` hands the readout ``[T * N, P]``."""

    def __init__(self, reduction):
        super().__init__()
        self.kind = reduction
        self.head = layer.SeqToANNContainer(nn.Linear(24, 3))

    def forward(self, x):
        functional.reset_net(self.hidden)
        logits = self.head(self.hidden(self.steps(x)))
        return logits.mean(0) if self.kind == "mean" else logits


@pytest.mark.parametrize("kind", ["mean", "all"])
def test_time_flattened_into_the_batch(kind):
    net = FlatNet(kind)
    readout, found = captured(net, list(rows(48)[0].split(16)))
    assert readout.name == "head.0"
    assert readout.reduction.layout == "flat"
    coef, intercept = readout.read()
    assert torch.allclose((found.dictionary.to_dense() @ coef + intercept).float(), found.outputs, atol=1e-5)


class PoissonNet(Net):
    def __init__(self):
        super().__init__()
        self.encoder = encoding.PoissonEncoder(step_mode="m")

    def steps(self, x):
        return self.encoder(x.expand(STEPS, *x.shape)) * self.gain


def test_a_random_encoder_is_averaged():
    net = PoissonNet()
    readout, found = captured(net, list(rows(50)[0].split(16)))
    assert found.draws == ENCODER_DRAWS
    assert found.dictionary.scale == 1 / STEPS / ENCODER_DRAWS
    assert not found.dictionary.counts.is_floating_point()
    coef, intercept = readout.read()
    assert torch.allclose((found.dictionary.to_dense() @ coef + intercept).float(), found.outputs, atol=1e-5)


@pytest.mark.parametrize("tail", ["spikes", "rates"])
def test_joined_parts_are_one_capture(tail):
    net = Net("mean")
    if tail == "rates":  # a rate that the network computes itself: its denominator shows in all rows only
        net.forward = lambda x: net.readout(net.hidden(net.steps(x)).mean(0))
    batches = list(rows(50)[0].split(16))
    batches[0] = torch.zeros_like(batches[0])  # silent
    readout, whole = captured(net, batches)
    parts = []
    with undisturbed(net):
        net.eval()
        for part in (batches[:1], [], batches[1:]):
            parts.append(observe(net, readout, part))
    found = join(parts, readout.reduction)
    assert parts[1] is None
    assert found.dictionary.counts.dtype == whole.dictionary.counts.dtype
    assert torch.equal(found.dictionary.counts, whole.dictionary.counts)
    assert torch.equal(found.outputs, whole.outputs)
    assert (found.dictionary.scale, found.draws) == (whole.dictionary.scale, whole.draws)


def test_parts_that_cannot_be_joined():
    net = Net("mean")
    readout, _ = captured(net, [rows(4)[0]])
    with undisturbed(net):
        part = observe(net, readout, [rows(4)[0]])
    with pytest.raises(ValueError, match="gave \\(scale, draws\\)"):
        join([part, replace(part, draws=ENCODER_DRAWS)], readout.reduction)


def test_no_batches():
    net = Net()
    with undisturbed(net), pytest.raises(ValueError, match="no rows"):
        capture(net, Readout("readout", net.readout, TimeReduction("mean", "steps", STEPS)), [])


def test_another_number_of_steps():
    net = Net()
    with undisturbed(net), pytest.raises(ValueError, match="4 time steps in this batch and 5"):
        capture(net, Readout("readout", net.readout, TimeReduction("mean", "steps", STEPS + 1)), [rows(4)[0]])


def test_hooks_are_removed_after_a_failure():
    net = Net()
    with undisturbed(net), pytest.raises(RuntimeError):
        capture(net, Readout("readout", net.readout, TimeReduction("mean", "steps", STEPS)), [torch.zeros(3, 99)])
    assert not net.readout._forward_pre_hooks


def test_other_neurons_are_captured_as_they_are():
    net = Net()
    net.hidden[1] = neuron.ParametricLIFNode(step_mode="m")
    net.hidden.append(layer.Linear(24, 24, step_mode="m"))
    net.hidden.append(neuron.QIFNode(step_mode="m"))
    readout, found = captured(net, list(rows(50)[0].split(16)))
    coef, intercept = readout.read()
    assert torch.allclose((found.dictionary.to_dense() @ coef + intercept).float(), found.outputs, atol=1e-5)


@pytest.mark.parametrize("said", [0, 3, 50, 1000])
@pytest.mark.parametrize("kinds", [(1.0, 1.0, 1.0), (1.0, 300.0, 2.0), (1.0, 0.5, 300.0), (0.5, 300.0, 1.0)])
def test_rows_are_one_below_the_other_however_many_were_announced(said, kinds):
    """Also where later batches need a wider type than the first one."""
    readout, told = nn.Linear(4, 2), []
    batches = [torch.randint(0, 2, (size, 4)) * kind for size, kind in zip((20, 1, 29), kinds, strict=True)]

    def room(first):
        told.append(first)
        return said

    observed = observe(readout, Readout("", readout, TimeReduction("none", "static", 1)), batches, room)
    assert torch.equal(observed.values.float(), torch.cat(batches))
    assert torch.equal(observed.outputs, torch.cat([readout(x) for x in batches]))
    assert observed.values.is_floating_point() == (0.5 in kinds)
    assert len(told) == 1
    assert torch.equal(told[0].float(), batches[0])


def test_a_refusal_of_room_reads_no_further_batch():
    readout, read = nn.Linear(4, 2), []

    def batches():
        for _ in range(3):
            read.append(0)
            yield torch.ones(5, 4)

    def room(first):
        raise ValueError("too much")

    with pytest.raises(ValueError, match="too much"):
        observe(readout, Readout("", readout, TimeReduction("none", "static", 1)), batches(), room)
    assert len(read) == 1
    assert not readout._forward_pre_hooks
