from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from networks import Net, trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import AdditionDataModule, AdditionSNN, ConvexReconstruction, ParallelSNN, reconstruct
from lightning_cvxsnn.network import LIF, undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.neurons import neuron_of
from lightning_cvxsnn.network.programme import CapturedProgramme, capture_programme
from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.runtime.progress import no_progress
from lightning_cvxsnn.witnesses import proposers
from lightning_cvxsnn.witnesses.branch_search import BranchProposer, BranchSearchSettings
from lightning_cvxsnn.witnesses.branches import Branched
from lightning_cvxsnn.witnesses.column_generation import ColumnGeneration
from lightning_cvxsnn.witnesses.kinds import WitnessOptions
from lightning_cvxsnn.witnesses.proposers import propose_branches

STEPS, SAMPLES, RATE = 6, 120, 0.15


def network(reduction="last", **options):
    torch.manual_seed(0)
    sizes = {"in_features": 3, "width": 16, "last_width": 32, "depth": 3, "branches": 2, "reduction": reduction}
    return ParallelSNN(**(sizes | {"tau": (1.05, 100.0), "reset": "mixed"} | options))


def programme(net, inputs, targets, outputs=2):
    rows = SAMPLES * (STEPS if net.reduction == "all" else 1)
    held_out = (torch.arange(SAMPLES) % 5 == 0).repeat_interleave(rows // SAMPLES)
    return CapturedProgramme(
        dictionary=SpikeDictionary(torch.zeros(rows, 1, dtype=torch.uint8)),
        targets=targets,
        weights=torch.ones(rows, dtype=torch.float64),
        outputs=torch.zeros(rows, outputs),
        held_out=held_out,
        loss="cross_entropy",
        num_outputs=outputs,
        fit_intercept=True,
    )


def planted(reduction="last", **options):
    """A network and a programme that asks whether some input was large a few steps ago."""
    net = network(reduction, **options)
    inputs = torch.randn(SAMPLES, STEPS, 3, generator=torch.Generator().manual_seed(1))
    late = (inputs[:, 3:, 0].sum(1) > 0).long()
    per_step = (inputs[..., 0] > 0).long().flatten()
    return net, inputs, programme(net, inputs, per_step if reduction == "all" else late)


def proposer(net, inputs, problem, seed=0, price=True):
    return BranchProposer(net, inputs, problem, RATE, seed, BranchSearchSettings(rounds=2, drawn=2, price=price))


def search(net, inputs, problem, rho=None, seed=0, price=True):
    return ColumnGeneration(proposer(net, inputs, problem, seed, price)).search(rho)


@cache
def searched(rho, seed=0, price=True, reduction="last"):
    """What is found for the planted programme, and who found it: several tests look at one search."""
    proposing = proposer(*planted(reduction), seed, price)
    return ColumnGeneration(proposing).search(rho), proposing


def test_a_network_of_branches_is_known_by_what_it_offers():
    assert isinstance(network(), Branched)
    assert not isinstance(Net(), Branched)


@pytest.mark.parametrize(("reduction", "price"), [("last", True), ("mean", False), ("membrane", True), ("all", False)])
def test_the_columns_found_are_what_the_network_then_reads(reduction, price):
    net, inputs, problem = planted(reduction)
    found, _ = searched(0.005, price=price, reduction=reduction)
    assert len(found.chosen.branches) == 2
    proposer(net, inputs, problem).write(Network(net, rows_of(net, [(inputs, problem.targets)])), found)
    received = []
    net.readout.register_forward_pre_hook(lambda _, args: received.append(args[0]))
    with torch.no_grad():
        net(inputs)
    rows = received[0].transpose(0, 1).flatten(0, 1) if reduction == "all" else received[0]
    columns = torch.cat([branch.columns.to_dense(torch.float32) for branch in found.chosen.branches], 1)
    assert columns.shape == rows.shape
    assert ((columns - rows).abs() < 1e-6).float().mean() > 0.999  # products round by the batch's size


@pytest.mark.parametrize(("price", "rho"), [(False, None), (True, 0.01)])
def test_the_objective_never_rises_and_falls(price, rho):
    found, proposing = searched(rho, price=price)
    assert all(b <= a + 1e-9 for a, b in zip(found.objectives, found.objectives[1:], strict=False))
    assert found.objectives[-1] < 0.97 * found.objectives[0]
    assert proposing.drawn == 8


def test_pricing_beats_the_pool():
    """Same number of candidates, same penalty; means of two seeds."""
    pool, priced = (
        sum(searched(0.005, seed, price)[0].objectives[-1] for seed in range(2)) / 2 for price in (False, True)
    )
    assert priced < 0.97 * pool


def test_the_constants_that_the_task_needs_are_chosen():
    """A decision about each present input: voltages that are retained from earlier steps only blur it."""
    net, inputs, problem = planted("all", depth=2, branches=1)
    problem = replace(problem, targets=(inputs[..., 0] + inputs[..., 1] > 0).long().flatten())
    for seed in range(2):
        found = search(net, inputs, problem, 0.005, seed)
        assert neuron_of(found.chosen.branches[0].layers[1]).leak < 0.4  # drawn uniformly from 0.05 to 0.99


def test_constants_out_of_the_ranges_are_not_drawn():
    net, inputs, problem = planted(tau=(2.0, 3.0), reset="hard", v_threshold=0.7)
    for branch in search(net, inputs, problem, 0.005).chosen.branches:
        constants = neuron_of(branch.layers[1])
        assert 2 <= constants.tau <= 3
        assert (constants.v_reset, constants.decay_input) == (0.0, False)
        assert constants.v_threshold == pytest.approx(0.7)
        assert neuron_of(branch.layers[3]) == constants


def test_runs_repeat_and_leave_the_network_and_random_generators_alone():
    net, inputs, problem = planted()
    saved = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (search(net, inputs, problem, 0.01, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, saved[name]) for name, value in net.state_dict().items())
    assert first.objectives == second.objectives != searched(0.01)[0].objectives
    for one, two in zip(first.chosen.branches, second.chosen.branches, strict=True):
        assert all(
            torch.equal(a, b)
            for a, b in zip(one.layers.state_dict().values(), two.layers.state_dict().values(), strict=True)
        )


def test_held_out_rows_fit_nothing():
    net, inputs, problem = planted()
    targets = torch.where(problem.held_out, 1 - problem.targets, problem.targets)
    assert search(net, inputs, replace(problem, targets=targets), 0.01).objectives == searched(0.01)[0].objectives


def test_inputs_that_tell_nothing_are_refused():
    net, inputs, problem = planted()
    with pytest.raises(ValueError, match="fire alike on every training row"):
        search(net, torch.zeros_like(inputs), problem)


# -- through the callback


def addition(base=3, **options):
    torch.manual_seed(0)
    data = AdditionDataModule(base, digits=3, sizes=(60, 20, 20), test_digits=(3,))
    net = AdditionSNN(base, last_width=24, branches=2, **options)
    return net, data


@pytest.fixture
def quick(monkeypatch):
    """Searches that try less."""
    monkeypatch.setattr(proposers, "BranchSearchSettings", partial(BranchSearchSettings, rounds=2, drawn=2))


def constants(net):
    return [neuron_of(m) for m in net.modules() if isinstance(m, LIF)]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("witnesses", ["pool", "priced"])
def test_reconstruction_writes_weights_and_constants(witnesses):
    net, data = addition(tau=(1.05, 100.0), reset="mixed")
    data.setup("fit")
    before, mode = constants(net), net.training
    report = reconstruct(net, data.train_dataloader(), witnesses=witnesses, beta=0.01)
    assert report.accepted
    assert report.gap < 1e-6
    assert report.candidates >= 2 * 2 * 2 * 12  # rounds, candidates per branch, branches, units of each
    assert (report.violation is None) == (witnesses == "pool")
    assert constants(net) != before
    assert net.training == mode
    twin, _ = addition(tau=(1.05, 100.0), reset="mixed")
    twin.load_state_dict(net.state_dict())
    x = data.train.tensors[0]
    assert torch.equal(net(x), twin(x))


def test_the_callback_trains_on_chosen_branches():
    net, data = addition(tau=(1.05, 100.0))
    callback = ConvexReconstruction(witnesses="priced", beta=0.01, every_n_epochs=0)
    run = trainer(callback, max_epochs=1, num_sanity_val_steps=0)
    run.fit(net, data)
    warm, final = callback.reports
    assert warm.accepted
    assert warm.held_out_loss_after < 0.7 * warm.held_out_loss_before
    assert final.held_out_loss_before <= warm.held_out_loss_after * 1.1 or final.accepted


@pytest.mark.usefixtures("quick")
def test_a_dry_run_and_a_failure_leave_the_constants(monkeypatch):
    net, data = addition(tau=(1.05, 100.0), reset="mixed")
    data.setup("fit")
    saved = {name: value.clone() for name, value in net.state_dict().items()}
    report = reconstruct(net, data.train_dataloader(), witnesses="pool", beta=0.01, dry_run=True)
    assert report.reason.endswith("would be accepted")
    assert all(torch.equal(value, saved[name]) for name, value in net.state_dict().items())

    def fail(*_):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(Network, "verify", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        reconstruct(net, data.train_dataloader(), witnesses="pool", beta=0.01)
    assert all(torch.equal(value, saved[name]) for name, value in net.state_dict().items())


@pytest.mark.usefixtures("quick")
def test_rejected_branches_are_rolled_back():
    net, data = addition(tau=(1.05, 100.0), reset="mixed")
    data.setup("fit")
    assert reconstruct(net, data.train_dataloader(), witnesses="priced", beta=0.01).accepted
    before, weights = constants(net), [p.clone() for p in net.parameters()]
    report = reconstruct(net, data.train_dataloader(), witnesses="gaussian_standard", beta=1e3)  # redrawn, and unused
    assert not report.accepted
    assert constants(net) == before
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), weights, strict=True))


def test_pairs_ask_for_one_branch():
    net, data = addition()
    data.setup("fit")
    with pytest.raises(ValueError, match=r"is not the spikes of 'branches\.1\.1' reduced over time"):
        reconstruct(net, data.train_dataloader(), witnesses="pairs")


@pytest.mark.parametrize("reduction", ["last", "all"])
def test_branches_are_chosen_on_some_samples_and_their_own_targets(reduction):
    inputs = torch.randn(SAMPLES, STEPS, 3, generator=torch.Generator().manual_seed(1))
    targets = (inputs[..., 0] > 0).long()
    if reduction != "all":
        targets = targets[:, -1]
    batches = list(zip(inputs.split(32), targets.split(32), strict=True))  # the last one is smaller
    net = network(reduction)
    with undisturbed(net):
        asked = Network(net.eval(), rows_of(net, batches))
        captured = capture_programme(asked, loss="cross_entropy", seed=0, progress=no_progress, stage="patterns")
        found = propose_branches(asked, net, captured, WitnessOptions("pool", 0, "torch", "cross_entropy"), most=50)
    chosen, labels = found.inputs, found.programme.problem.targets
    assert chosen.shape == (50, STEPS, 3)
    assert len(chosen.unique(dim=0)) == 50
    expected = chosen[..., 0] > 0 if reduction == "all" else chosen[:, -1, 0] > 0
    assert torch.equal(labels, expected.long().flatten())


@pytest.mark.parametrize("witnesses", ["pool", "priced"])
def test_branches_without_biases(witnesses):
    """The paper's have none."""
    torch.manual_seed(0)
    net = ParallelSNN(in_features=2, width=8, last_width=16, depth=3, branches=2, bias=False, tau=2.0)
    x = torch.rand(200, 6, 2) * 3
    rows = DataLoader(TensorDataset(x, (x[:, :, 0].sum(1) > 9).long()), 50)
    report = reconstruct(net, rows, witnesses=witnesses, beta=0.01)
    assert report.candidates > 0
    assert report.gap < 1e-6
