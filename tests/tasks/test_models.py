import pytest
import torch
from networks import trainer
from spikingjelly.activation_based import functional
from torch.nn import functional as F

from lightning_cvxsnn import ConvexReconstruction, DigitsDataModule, LitSNN
from lightning_cvxsnn.demo import run_demo


@pytest.mark.parametrize("reduction", ["last", "mean", "sum"])
def test_the_forward_is_the_stack_reduced_over_time(reduction):
    net = LitSNN(8, [16, 12], reduction=reduction, tau=1.5, v_reset=None)
    x = torch.rand(5, 8, 8) * 4
    functional.reset_net(net.layers)
    functional.set_step_mode(net.layers, "s")
    spikes = torch.stack([net.layers(x[:, t]) for t in range(8)])
    functional.reset_net(net.layers)
    functional.set_step_mode(net.layers, "m")
    reduced = {"last": spikes[-1], "mean": spikes.mean(0), "sum": spikes.sum(0)}[reduction]
    assert torch.allclose(net(x), F.linear(reduced, net.readout.weight, net.readout.bias), atol=1e-6)
    assert torch.equal(net(x), net(x))


def test_hyperparameters_rebuild_the_network():
    net = LitSNN(hidden=[16], lr=0.5)
    twin = LitSNN(**net.hparams)
    twin.load_state_dict(net.state_dict())
    assert twin.configure_optimizers().param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("reduction", ["last", "sum"])
def test_it_trains_with_the_callback(reduction):
    callback = ConvexReconstruction(beta=0.02)
    data = DigitsDataModule()
    run = trainer(callback, max_epochs=1, num_sanity_val_steps=0)
    run.fit(LitSNN(hidden=[32], reduction=reduction), data)
    assert callback.reports[0].accepted
    assert run.callback_metrics["val_accuracy"] > 0.3


def test_nine_dead_layers_come_to_life(capsys):
    """Three controls, same seed and epochs: default weights, calibrated only, calibrated and solved."""
    default, calibrated, solved = run_demo(epochs=2, hidden=(128,) * 9)
    with capsys.disabled():
        for row in (default, calibrated, solved):
            print(f"\n{row.name}: start {row.start:.3f}, test {row.test:.3f}", end="")
    assert default.test < 0.2
    assert solved.test > 0.6
    assert solved.start > calibrated.start + 0.05  # the solve alone, before any epoch
