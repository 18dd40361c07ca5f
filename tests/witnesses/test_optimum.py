import pytest
import torch
from spikingjelly.activation_based import neuron

from lightning_cvxsnn.convex import mean_loss, solve
from lightning_cvxsnn.network import reset_neurons
from lightning_cvxsnn.patterns import Neuron
from lightning_cvxsnn.witnesses.optimum import network_optimum


def task():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 2, generator=generator)
    return x, torch.tensor([0, 1, 1, 0, 1])


def columns(x, weight, bias):
    node = neuron.LIFNode(tau=2.0, step_mode="m")
    reset_neurons(node)
    with torch.no_grad():
        return node((x.double() @ weight.T + bias).float()).mean(0)


@pytest.mark.parametrize("loss", ["cross_entropy", "hinge", "squared"])
def test_bounds_every_network_and_is_attained_by_one(loss):
    x, labels = task()
    targets = torch.nn.functional.one_hot(labels).double() if loss == "squared" else labels
    options = {"loss": loss, "rho": 0.02, "fit_intercept": True}
    best = network_optimum(Neuron(tau=2.0), x, targets, kind="mean", bias=True, gap_tolerance=1e-9, **options)
    assert best.scope == "network"
    assert 0 <= best.solution.gap <= 1e-8

    received = columns(x, best.weight, best.bias)  # the network of the witnesses, run by spikingjelly
    outputs = received.double() @ best.readout.T + best.solution.intercept
    objective = mean_loss(outputs, targets, loss=loss) + 0.02 * float(best.readout.abs().sum())
    assert objective == pytest.approx(best.solution.primal, abs=1e-9)

    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        weight, bias = (4 * torch.randn(shape, generator=generator).double() for shape in ((200, 2), (200,)))
        other = solve(columns(x, weight, bias), targets, **options)
        assert other.primal >= best.solution.dual - 1e-12


def test_refuses_what_the_solver_refuses():
    x, labels = task()
    with pytest.raises(ValueError, match="rho"):
        network_optimum(Neuron(tau=2.0), x, labels, kind="mean", loss="hinge", rho=0.0, bias=True, fit_intercept=True)
