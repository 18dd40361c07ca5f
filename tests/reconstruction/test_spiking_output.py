import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import Net, assert_same_state, loader, reduce_over_time, rows, state, trainer
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn import functional as F

from lightning_cvxsnn import ConvexReconstruction, reconstruct
from lightning_cvxsnn.convex import mean_loss
from lightning_cvxsnn.network import undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import Penalty, capture_programme
from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.reconstruction.guard import SCALES, Judges, firing_rates, judge_spiking
from lightning_cvxsnn.runtime.progress import no_progress


class SpikingNet(Net):
    """``Linear-LIF-Linear-LIF``; decisions by the firing rate of the last layer."""

    def __init__(self, reduction="mean", step_mode="m", out=None, **kwargs):
        super().__init__(reduction, step_mode, **kwargs)
        self.out = out or neuron.LIFNode()
        functional.set_step_mode(self.out, step_mode)

    def forward(self, x):
        functional.reset_net(self.hidden)
        functional.reset_net(self.out)
        if self.step_mode == "m":
            spikes = self.out(self.readout(self.hidden(self.steps(x))))
        else:
            spikes = torch.stack([self.out(self.readout(self.hidden(step))) for step in self.steps(x)])
        return reduce_over_time(spikes, self.reduction)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0]), F.one_hot(batch[1], 3).float())


def programme(net, loss="squared"):
    """``net`` with its rows, and its programme; call it inside ``undisturbed``."""
    net.eval()
    network = Network(net, rows_of(net, loader()))
    return network, capture_programme(network, loss=loss, seed=0, progress=no_progress, stage="")


def judged(network, problem, **scales):
    """What the held-out rows say of a solution over the others, and the solution."""
    point = problem.solve(Penalty(1e-3 * 24**0.5, 1.0), 1e-6, None, ~problem.held_out).point
    judges = Judges.of(network, problem, None, alone=False)
    return point, lambda: judge_spiking(network, judges, judges.found(), point, **scales)


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("reduction", ["mean", "last", "sum", "all"])
@pytest.mark.parametrize("bias", [True, False])
def test_firing_rates_are_those_of_the_network_with_the_weights_written(step_mode, reduction, bias):
    net = SpikingNet(reduction, step_mode, bias=bias)
    x = rows()[0]
    coef, intercept = torch.randn(24, 3).double() * 4, torch.randn(3).double() * bias
    with undisturbed(net), torch.no_grad():
        net.eval()
        network = Network(net, rows_of(net, loader()))
        readout = network.readout
        found = firing_rates(network, network.rows, [readout.read(), (coef, intercept)])
        as_found = net(x)
        readout.write(coef, intercept)
        written = net(x)
    for candidate, expected in zip(found, (as_found, written), strict=True):
        if reduction == "all":
            expected = expected.transpose(0, 1).flatten(0, 1)
        assert torch.equal(candidate, expected)
    assert len(written.unique()) > 1


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_the_scale_is_the_best_by_brute_force(loss):
    net = SpikingNet()
    nn.init.zeros_(net.readout.weight)
    nn.init.zeros_(net.readout.bias)
    with undisturbed(net), torch.no_grad():
        network, problem = programme(net, loss)
        solution, judge = judged(network, problem)
        found = judge()
        x, y = rows()
        scores = {}
        for scale in SCALES:
            network.readout.write(scale * solution.coef, scale * solution.intercept)
            answers = net(x)[problem.held_out]
            targets = problem.targets[problem.held_out]
            right = float((answers.argmax(1) == y[problem.held_out]).double().mean())
            scores[scale] = right, -mean_loss(answers, targets, loss=loss)
    silent = mean_loss(torch.zeros(48, 3), targets, loss=loss)
    assert found.before == pytest.approx(silent)
    better = {scale: score for scale, score in scores.items() if -score[1] < silent}
    assert found.accepted
    assert found.scale == max(better, key=better.get)
    assert (found.accuracy_after, -found.after) == pytest.approx(scores[found.scale])
    assert len(set(scores.values())) > 5


def test_a_fall_of_the_loss_that_costs_decisions_is_refused():
    net = SpikingNet()
    with undisturbed(net), torch.no_grad():
        network, problem = programme(net)
        solution, _ = judged(network, problem)
        network.readout.write(solution.coef, solution.intercept + 2)  # all outputs fire too much, the right one most
        silent = judged(*programme(net), scales=[1 / 64])[1]()
    assert silent.after < silent.before
    assert silent.accuracy_after < silent.accuracy_before
    assert not silent.accepted


def test_the_same_readout_is_not_better():
    net = SpikingNet()
    with undisturbed(net), torch.no_grad():
        network, problem = programme(net)
        solution, _ = judged(network, problem)
        network.readout.write(4 * solution.coef, 4 * solution.intercept)
        found = judged(*programme(net), scales=[4.0])[1]()
    assert (found.before, found.accuracy_before) == (found.after, found.accuracy_after)
    assert not found.accepted


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("out", [neuron.LIFNode(tau=20.0), neuron.IFNode(v_reset=None), neuron.ParametricLIFNode()])
def test_a_warm_start_and_a_final_solve_decide_better(step_mode, out):
    net = SpikingNet(step_mode=step_mode, out=out)
    x, y = rows()
    callback = ConvexReconstruction(loss="squared", beta=0.01, every_n_epochs=0)
    right = []

    class Right(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            with undisturbed(pl_module), torch.no_grad():
                pl_module.eval()
                right.append(float((pl_module(x).argmax(1) == y).double().mean()))

    trainer(Right(), callback, Right(), max_epochs=1).fit(net, loader())
    report = callback.reports[0]
    assert report.accepted
    assert report.scope == "dictionary"
    assert report.accuracy_after > report.accuracy_before
    assert "the certificate is about the linear programme only" in report.reason
    assert report.gap < 1e-6
    assert right[1] > right[0] + 0.2


def test_the_scale_may_be_given():
    report = reconstruct(SpikingNet(), loader(), loss="squared", beta=0.01, scale=3.0)
    assert report.accepted
    assert report.scale == 3.0


def test_a_dry_run_writes_nothing():
    net = SpikingNet()
    before = state(net)
    report = reconstruct(net, loader(), loss="squared", beta=0.01, dry_run=True)
    assert report.reason.startswith("single solve: would be accepted by the firing rates of 'out'")
    assert_same_state(net, before)


def test_a_solution_that_decides_worse_is_not_written():
    net = SpikingNet()
    reconstruct(net, loader(), loss="squared", beta=0.01)
    before = state(net)
    report = reconstruct(net, loader(), loss="squared", beta=0.01, scale=1e-3)
    assert not report.accepted
    assert "rejected, not better by the firing rates of 'out'" in report.reason
    assert_same_state(net, before)


def test_witnesses_of_the_layer_below():
    net = SpikingNet()
    weights = net.hidden[0].weight.detach().clone()
    report = reconstruct(net, loader(), loss="squared", beta=0.01, witnesses="priced")
    assert report.accepted
    assert not torch.equal(net.hidden[0].weight, weights)


def test_no_witnesses_below():
    net = SpikingNet()
    net.hidden = nn.Sequential(layer.Linear(6, 24, step_mode="m"))
    with pytest.raises((MisconfigurationException, ValueError), match="No spiking layer feeds the readout"):
        reconstruct(net, loader(), loss="squared", beta=0.01, witnesses="priced")
