"""Reservoirs: the branching ratio counted another way, and the search for constants."""

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from spikingjelly.activation_based import functional, neuron
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import ParallelSNN
from lightning_cvxsnn.network import LIF, undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.witnesses.reservoir import branching_ratio, set_constants, tune_reservoir


def rows(n=120, steps=9):
    x = torch.randn(n, steps, 2, generator=torch.Generator().manual_seed(0)).abs()
    return DataLoader(TensorDataset(x, torch.arange(n) % 2), batch_size=50), x


def tuned(net, loader, **grid):
    with undisturbed(net):
        found = tune_reservoir(Network(net, rows_of(net, loader)), "gaussian_normalized", 3, **grid)
    set_constants(net, found.leak, found.threshold)
    return found


@pytest.mark.parametrize("growth", [0.5, 1.0, 2.0])
def test_the_ratio_of_a_branching_process_is_its_mean_number_of_children(growth):
    generator = np.random.default_rng(0)
    activity, train = 4000, []
    for _ in range(6):
        train.append(activity)
        activity = generator.poisson(growth, activity).sum()
    spikes = torch.zeros(6, 1, max(train))
    for step, count in enumerate(train):
        spikes[step, 0, :count] = 1
    assert branching_ratio(spikes) == pytest.approx(growth, rel=0.05)


def test_the_chosen_reservoir_has_the_ratio_that_spikingjellys_neurons_show():
    loader, x = rows()
    torch.manual_seed(0)
    net = ParallelSNN(width=20, last_width=40, depth=3, branches=2)
    found = tuned(net, loader)
    activity = np.zeros(9)
    for branch in net.branches:
        steps = x.transpose(0, 1)
        for affine in branch[::2]:
            constants = {"tau": 1 / (1 - found.leak), "v_threshold": found.threshold, "v_reset": None}
            node = neuron.LIFNode(**constants, decay_input=False, step_mode="m")
            with torch.no_grad():
                steps = node(affine(steps))
        activity += steps.sum((1, 2)).numpy()
    slope = np.linalg.lstsq(activity[:-1, None], activity[1:], rcond=None)[0][0]
    assert found.ratio == pytest.approx(slope, rel=1e-3)
    assert abs(found.ratio - 1) < 0.1
    assert all(float(n.tau) == pytest.approx(1 / (1 - found.leak)) for n in net.modules() if isinstance(n, LIF))
    norms = torch.cat([branch[0].weight.norm(dim=1) for branch in net.branches])
    assert torch.allclose(norms, torch.full_like(norms, found.scale), atol=1e-5)
    assert all(not affine.bias.any() for branch in net.branches for affine in branch[::2])


def test_no_combination_is_nearer_to_one():
    loader, _ = rows()
    net = ParallelSNN(width=20, last_width=40, depth=3, branches=2)
    grid = {"leaks": (0.9, 0.99), "thresholds": (0.25, 0.5), "scales": (2.0, 4.0)}
    best = tuned(net, loader, **grid)
    for leak in grid["leaks"]:
        for threshold in grid["thresholds"]:
            for scale in grid["scales"]:
                alone = tuned(net, loader, leaks=(leak,), thresholds=(threshold,), scales=(scale,))
                assert abs(alone.ratio - 1) >= abs(best.ratio - 1) - 1e-9


class Own(nn.Module):
    """spikingjelly's own neurons, step by step."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(2, 30), neuron.LIFNode(), nn.Linear(30, 25), neuron.LIFNode())
        self.readout = nn.Linear(25, 2)

    def forward(self, x):
        functional.reset_net(self.hidden)
        return torch.stack([self.readout(self.hidden(step)) for step in x.transpose(0, 1)]).mean(0)


def test_spikingjellys_neurons_in_single_steps():
    loader, x = rows()
    net = Own()
    found = tuned(net, loader)
    assert net.hidden[3].tau == pytest.approx(1 / (1 - found.leak))
    assert net.hidden[1].v_threshold == found.threshold
    counts = []
    handle = net.hidden[3].register_forward_hook(lambda *args: counts.append(float(args[2].sum())))
    with torch.no_grad():
        net(x)
    handle.remove()
    before, after = np.array(counts[:-1]), np.array(counts[1:])
    assert found.ratio == pytest.approx(before @ after / (before @ before), rel=1e-3)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"leaks": (0.9, 1.0)}, r"leaks=\[0.9, 1.0\]. Expected numbers above 0 and below 1"),
        ({"thresholds": ()}, r"thresholds=\[\]. Expected numbers above 0"),
        ({"scales": (-1.0,)}, r"scales=\[-1.0\]"),
        ({"thresholds": (1e6,)}, "no spikes in the last layer with any of 16 reservoirs"),
    ],
)
def test_what_cannot_be_tuned_is_refused(grid, message):
    net = ParallelSNN(width=20, last_width=40, depth=3, branches=2)
    with pytest.raises(MisconfigurationException, match=message):
        tuned(net, rows()[0], **grid)
