import copy

import pytest
import torch
import torchmetrics
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from lightning_cvxsnn.network import release_graphs, reset_neurons, undisturbed


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            layer.Linear(3, 5), layer.BatchNorm1d(5), neuron.LIFNode(store_v_seq=True), nn.Dropout()
        )
        self.decoder = neuron.NonSpikingLIFNode(decode="last_mem")
        self.metric = torchmetrics.MeanMetric()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.decoder(self.net(x)[None])


def snapshot(module):
    lif, decoder = module.net[2], module.decoder
    return {
        "modes": [m.training for m in module.modules()],
        "v": lif.v.clone(),
        "v_is": id(lif.v),
        "v_seq": lif.v_seq.clone(),
        "decoder": decoder.v.clone(),
        "mean": module.net[1].running_mean.clone(),
        "tracked": module.net[1].num_batches_tracked.clone(),
        "metric": module.metric.compute(),
        "calls": module.calls,
    }


def test_everything_is_as_before():
    module = Stateful()
    module.net[3].eval()  # one submodule frozen by its user
    module.metric.update(3.0)
    module(torch.randn(4, 3))
    before = snapshot(module)
    with undisturbed(module), torch.no_grad():
        module.train()
        reset_neurons(module)
        module(torch.randn(7, 3))
    after = snapshot(module)
    for key, value in before.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, after[key]), key
        else:
            assert value == after[key], key


def test_everything_is_as_before_after_an_exception():
    module = Stateful()
    module(torch.randn(4, 3))
    before = snapshot(module)
    with pytest.raises(RuntimeError, match="boom"), undisturbed(module):
        reset_neurons(module)
        module(torch.randn(7, 3))
        raise RuntimeError("boom")
    assert torch.equal(before["v"], module.net[2].v)
    assert before["v_is"] == id(module.net[2].v)
    assert torch.equal(before["mean"], module.net[1].running_mean)


def test_neurons_that_were_clean_are_clean_again():
    module = Stateful()
    with undisturbed(module), torch.no_grad():
        module(torch.randn(4, 3))
    assert module.net[2].v == 0.0
    assert module.net[2].v_seq is None
    assert not hasattr(module.decoder, "v")


def test_a_graph_in_the_users_state_survives():
    lif = nn.Sequential(nn.Linear(3, 5), neuron.LIFNode())
    lif(torch.randn(2, 3))
    graph = lif[1].v
    assert graph.requires_grad
    with undisturbed(lif), torch.no_grad():
        reset_neurons(lif)
        lif(torch.randn(2, 3))
    assert lif[1].v is graph
    lif[1].v.sum().backward()
    assert lif[0].weight.grad is not None


def test_fresh_state_leaves_metrics_alone():
    module = Stateful()
    module.metric.update(3.0)
    reset_neurons(module)
    assert module.metric.compute() == 3.0


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_released_network_can_be_copied_and_goes_on_from_the_same_state(step_mode):
    module = Stateful()
    functional.set_step_mode(module.net, step_mode)
    x = torch.randn(4, 3) if step_mode == "s" else torch.randn(2, 4, 3)
    module.forward = lambda x: module.decoder(module.net(x).reshape(-1, 4, 5))
    module.forward(x)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(module.net)
    before = snapshot(module)
    release_graphs(module)
    after = snapshot(module)
    for key in ("v", "v_seq", "decoder"):
        assert torch.equal(before[key], after[key])
    for part in (module.net, module.decoder):
        copy.deepcopy(part)
    assert torch.equal(copy.deepcopy(module.net[2]).v, module.net[2].v)


def test_what_a_forward_changes_in_place_is_as_before():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.rates = torchmetrics.SumMetric(), torchmetrics.CatMetric()
            self.total, self.seen, self.by_size = torch.zeros(2), [], {"3": 1}

        def forward(self, x):
            self.rows.update(len(x))
            self.rates.update(x.mean())
            self.total += x.mean(0)
            self.seen.append(len(x))
            self.by_size[str(len(x))] = 1

    module = Counting()
    module(torch.ones(3, 2))
    total, seen = module.total, module.seen
    with undisturbed(module):
        module(torch.ones(5, 2))
    assert module.total is total
    assert module.seen is seen
    assert (total.tolist(), seen, module.by_size) == ([1.0, 1.0], [3], {"3": 1})
    assert module.rows.compute() == 3
    assert module.rates.compute() == 1.0
