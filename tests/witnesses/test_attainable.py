from functools import cache

import cvxpy as cp
import pytest
import torch
from spikingjelly.activation_based import neuron

from lightning_cvxsnn.network import reset_neurons
from lightning_cvxsnn.network.neurons import neuron_of
from lightning_cvxsnn.patterns import KLIFNeuron, Neuron
from lightning_cvxsnn.witnesses import attainable_trains

NODES = {
    "hard": lambda: neuron.LIFNode(tau=2.0, step_mode="m"),
    "soft, undecayed input": lambda: neuron.LIFNode(tau=3.0, v_reset=None, decay_input=False, step_mode="m"),
    "IF": lambda: neuron.IFNode(v_reset=None, step_mode="m"),
    "reset above zero": lambda: neuron.LIFNode(v_reset=0.3, v_threshold=0.7, step_mode="m"),
    "parametric": lambda: neuron.ParametricLIFNode(init_tau=4.0, step_mode="m"),
}
each_node = pytest.mark.parametrize("name", NODES)


def inputs(steps, rows, features, seed=0):
    return torch.randn(steps, rows, features, generator=torch.Generator().manual_seed(seed))


@cache
def attainable(name):
    return attainable_trains(neuron_of(NODES[name]()), inputs(3, 3, 2), bias=True)


def as_set(trains):
    return {tuple(train.flatten().tolist()) for train in trains.permute(2, 0, 1)}


@each_node
def test_what_the_module_does_with_the_witnesses(name):
    node, x, found = NODES[name](), inputs(3, 3, 2), attainable(name)
    assert len(as_set(found.trains)) == len(found)
    assert bool((found.margin > 1e-5).all())
    reset_neurons(node)
    spikes = node((x.double() @ found.weight.T + found.bias).float())
    assert torch.equal(spikes.detach().bool(), found.trains)


@each_node
def test_random_weights_make_no_other_train(name):
    node, x, found = NODES[name](), inputs(3, 3, 2), attainable(name)
    generator = torch.Generator().manual_seed(1)
    weight, bias = (torch.randn(shape, generator=generator) * 5 for shape in ((50_000, 2), (50_000,)))
    reset_neurons(node)
    spikes = node(x @ weight.T + bias).detach().bool()
    drawn = as_set(torch.unique(spikes.flatten(0, 1), dim=1).unflatten(0, spikes.shape[:2]))
    assert drawn <= as_set(found.trains)
    assert len(drawn) > len(found) // 3


def feasible(node, train, x):
    """Whether some weights have the train: one linear programme, ties fire."""
    steps, rows, features = x.shape
    weight, slack = cp.Variable(features), cp.Variable()
    reset = 0.0 if node.v_reset is None else node.v_reset
    constraints = [slack <= 1]
    for row in range(rows):
        v = reset
        for step in range(steps):
            current = x[step, row].double().numpy() @ weight
            if isinstance(node, neuron.IFNode):
                h = v + current
            elif node.decay_input:
                h = v + (current - (v - reset)) / node.tau
            else:
                h = v - (v - reset) / node.tau + current
            fires = bool(train[step, row])
            constraints.append(h >= node.v_threshold if fires else h <= node.v_threshold - slack)
            after = h - node.v_threshold if node.v_reset is None else reset
            v = after if fires else h
    problem = cp.Problem(cp.Maximize(slack), constraints)
    problem.solve(solver=cp.HIGHS)
    return problem.status == cp.OPTIMAL and slack.value > 1e-7


@pytest.mark.parametrize("name", ["hard", "soft, undecayed input", "IF"])
def test_every_spike_train_by_its_own_linear_programme(name):
    node, x = NODES[name](), inputs(2, 3, 2, seed=2)
    every = [torch.tensor([code >> bit & 1 for bit in range(6)]).bool().view(2, 3) for code in range(2**6)]
    expected = as_set(torch.stack([train for train in every if feasible(node, train, x)], 2))
    assert as_set(attainable_trains(neuron_of(node), x, bias=False).trains) == expected
    assert len(expected) < 2**6


def test_dichotomies_of_the_square():
    corners = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]])
    found = attainable_trains(Neuron(), corners, bias=True)
    assert len(found) == 14  # all but XOR and its complement (Cover 1965)


def test_a_train_on_a_tie_is_kept_and_marked():
    twice = torch.tensor([[[1.0], [1.0], [-1.0]]])  # IF, threshold 0: the third fires too only at w = 0
    found = attainable_trains(Neuron(v_threshold=0.0), twice, bias=False)
    margins = {
        tuple(t.flatten().tolist()): float(m) for t, m in zip(found.trains.permute(2, 0, 1), found.margin, strict=True)
    }
    assert margins == {
        (False, False, True): pytest.approx(1.0),
        (True, True, False): pytest.approx(1.0),
        (True, True, True): 0.0,
    }


def test_weights_that_do_not_matter():
    found = attainable_trains(Neuron(tau=2.0, v_reset=0.5), torch.zeros(2, 1, 1), bias=False)
    assert found.trains.tolist() == [[[False]], [[False]]]


@pytest.mark.parametrize("kind", ["last", "mean", "sum"])
def test_columns_of_the_readout(kind):
    found = attainable("hard")
    dictionary, witness = found.dictionary(kind)
    spikes = found.trains.double()
    expected = {"last": spikes[-1], "mean": spikes.mean(0), "sum": spikes.sum(0)}[kind]
    torch.testing.assert_close(dictionary.to_dense(), expected[:, witness])
    assert dictionary.distinct == dictionary.shape[1] == torch.unique(expected, dim=1).shape[1]
    same = (expected[:, :, None] == expected[:, None, witness]).all(0)
    assert torch.equal(found.margin[witness], torch.where(same, found.margin[:, None], -1.0).amax(0))


def test_refusals():
    neuron_, x = Neuron(tau=2.0), inputs(2, 3, 2)
    with pytest.raises(ValueError, match=r"shape \[2, 3\].*Expected \[T, N, F\]"):
        attainable_trains(neuron_, x[:, :, 0], bias=True)
    with pytest.raises(ValueError, match="NaN or infinity"):
        attainable_trains(neuron_, x * float("inf"), bias=True)
    with pytest.raises(ValueError, match="more than 5 attainable"):
        attainable_trains(neuron_, x, bias=True, max_trains=5)
    with pytest.raises(ValueError, match="kind='all'"):
        attainable_trains(neuron_, x, bias=True).dictionary("all")
    with pytest.raises(ValueError, match="KLIF neuron cuts its voltage at zero"):
        attainable_trains(KLIFNeuron(), x, bias=True)


def test_more_steps_than_can_be_followed_are_refused():
    with pytest.raises(ValueError, match=r"Found 1100 steps of all rows together. Expected at most 700"):
        attainable_trains(Neuron(), torch.rand(10, 110, 1), bias=False)
    assert len(attainable_trains(Neuron(), torch.ones(7, 10, 1), bias=False).trains) > 1
