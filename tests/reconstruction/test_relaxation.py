"""Trained readouts that are drawn towards solutions: how far, what is shown meanwhile, and what is trained on."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from networks import Net, assert_same_state, loader, rows, state, trainer
from spikingjelly.activation_based import functional, neuron
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import ConvexReconstruction, ParallelSNN, XORDataModule
from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.reconstruction.reconstructor import Reconstructor
from lightning_cvxsnn.reconstruction.settings import Settings

READOUT = ["readout.weight", "readout.bias"]
ABSURD = 1e3  # a scale at which every solution is rejected


class Moments(pl.Callback):
    """The network and its optimiser at the end of an epoch's steps, in its validation, and at the next step."""

    def __init__(self):
        self.seen = {"solved": [], "validated": [], "stepped": []}
        self.histories = {"solved": [], "stepped": []}

    def note(self, moment, trainer, pl_module):
        self.seen[moment].append(state(pl_module))
        if moment in self.histories:
            history = trainer.optimizers[0].state.get(pl_module.readout.weight, {})
            self.histories[moment].append({name: value.clone() for name, value in history.items()})

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.note("validated", trainer, pl_module)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.note("stepped", trainer, pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self.net = pl_module


class Before(Moments):
    """Listed before the callback, it sees what training left."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_last_batch:
            self.note("solved", trainer, pl_module)


class Solution(pl.Callback):
    """Listed behind the callback; where nothing is shown, the readout is already the drawn one."""

    def __init__(self):
        self.shown = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_last_batch:
            self.shown.append(state(pl_module))


def fit(callback, *others, kind=Net, epochs=3, lr=1e-3, validation=True, **kwargs):
    torch.manual_seed(1)
    net = kind(lr=lr)
    before, behind = Before(), Solution()
    run = trainer(before, *[callback] if callback else [], behind, *others, max_epochs=epochs, **kwargs)
    run.fit(net, loader(), loader(seed=1) if validation else None)
    return net, before, behind.shown


def lerp(found, solution, step):
    return {name: torch.lerp(found[name], solution[name], step) for name in READOUT}


def assert_equal(first, second):
    for name in READOUT:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("relaxation", ["auto", 0.3, 1.0, 0.0])
def test_the_readout_that_is_trained_on_lies_between_the_trained_one_and_the_solution(relaxation):
    callback = ConvexReconstruction(
        beta=0.02, relaxation=relaxation, max_overhead=None, warm_start=False, final_solve=False
    )
    _, moments, shown = fit(callback)
    step = 0.3 if relaxation == "auto" else relaxation
    assert callback.reports[0].accepted
    assert {report.relaxation for report in callback.reports} == {step}
    for epoch in [k for k in range(2) if callback.reports[k].accepted]:
        found, validated = moments.seen["solved"][epoch], moments.seen["validated"][epoch]
        stepped = moments.seen["stepped"][epoch + 1]
        assert_equal(validated, shown[epoch])
        assert_equal(stepped, lerp(found, validated, step))
        assert not torch.equal(validated["readout.weight"], found["readout.weight"])
        for name in found.keys() - set(READOUT):
            assert torch.equal(found[name], validated[name])
            assert torch.equal(found[name], stepped[name])
        before, after = moments.histories["solved"][epoch], moments.histories["stepped"][epoch + 1]
        assert before.keys() == after.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("relaxation", "step"), [("auto", 0.0), (0.3, 0.3)])
def test_a_solution_whose_units_cancel_is_shown_and_not_drawn_to(relaxation, step):
    """Of FIRST-LAST-XOR, which small differences of many counts answer."""
    torch.manual_seed(0)
    net = ParallelSNN(width=40, last_width=80, depth=3, branches=1, lr=1e-3)
    callback = ConvexReconstruction(
        beta=1e-4, l1_ratio=0.0, relaxation=relaxation, max_overhead=None, warm_start=False, final_solve=False
    )
    trainer(callback, max_epochs=1).fit(net, XORDataModule(8, sizes=(400, 200, 10), batch_size=32))
    assert callback.reports[0].accepted
    assert callback.reports[0].relaxation == step


@pytest.mark.parametrize("relaxation", ["auto", 1.0])
def test_of_a_rejected_solution_the_trained_readout_is_validated_and_the_drawn_one_trained_on(relaxation):
    """What is rejected is the solution times an absurd scale, and what is drawn to is that."""
    callback = ConvexReconstruction(
        beta=0.02, relaxation=relaxation, scale=ABSURD, max_overhead=None, warm_start=False, final_solve=False
    )
    _, moments, _ = fit(callback, epochs=2)
    step = 0.3 if relaxation == "auto" else relaxation
    report = callback.reports[0]
    assert not report.accepted
    assert report.relaxation == step
    found, validated, stepped = (moments.seen[m][k] for m, k in (("solved", 0), ("validated", 0), ("stepped", 1)))
    assert_equal(found, validated)
    torch.manual_seed(1)
    net = Net()
    net.load_state_dict(found)
    x, y = rows()
    moved = (stepped["readout.weight"] - found["readout.weight"]) / step
    solution = (found["readout.weight"] + moved) / ABSURD
    assert solution.abs().max() < 20  # of the programme, not ten thousands
    with torch.no_grad():
        net.readout.weight.copy_(solution)
        net.readout.bias.copy_((found["readout.bias"] + (stepped["readout.bias"] - found["readout.bias"]) / step) / 1e3)
    assert (net(x).argmax(1) == y).float().mean() > 0.6


def objective(net, report):
    """The programme's at the readout of ``net``, over all rows."""
    x, y = rows()
    with torch.no_grad():
        weight, loss = net.readout.weight.double(), F.cross_entropy(net(x).double(), y)
    penalty = report.l1_ratio * weight.abs() + (1 - report.l1_ratio) / 2 * weight.square()
    return float(loss + report.rho * penalty.sum())


@pytest.mark.parametrize("scale", ["auto", ABSURD])
@pytest.mark.parametrize("seed", range(3))
def test_the_objective_falls_along_the_way(seed, scale):
    """Strictly, from the readout as trained to the solution; a rejected one is as good for that."""
    arguments = {"max_overhead": None, "warm_start": False, "final_solve": False}
    callback = ConvexReconstruction(seed=seed, judge="train" if seed % 2 else "auto", **arguments)
    torch.manual_seed(seed)
    net, moments = Net(lr=0.01), Before()
    trainer(moments, callback, max_epochs=4).fit(net, loader(seed=seed), loader(seed=9))
    for epoch, report in enumerate(callback.reports[:3]):
        values = []
        for weights in (moments.seen["solved"][epoch], moments.seen["stepped"][epoch + 1]):
            net.load_state_dict(weights)
            values.append(objective(net, report))
        assert values[1] < values[0]


@pytest.mark.parametrize("relaxation", ["auto", 0.0, 0.5, 1.0])
def test_a_start_is_shown_and_its_hidden_weights_are_trained_on_under_the_readout_of_the_network(relaxation):
    callback = ConvexReconstruction(beta=0.02, relaxation=relaxation, every_n_epochs=0, final_solve=False)
    shown = {}

    class Start(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            shown[len(callback.reports)] = state(pl_module)

    torch.manual_seed(1)
    moments = Moments()
    trainer(Start(), callback, Start(), moments, max_epochs=1).fit(Net(), loader(), loader(seed=1))
    (report,) = callback.reports
    found, start, stepped = shown[0], shown[1], moments.seen["stepped"][0]
    assert report.accepted
    assert report.relaxation == (0.0 if relaxation == "auto" else relaxation)
    assert not torch.equal(found["hidden.0.weight"], start["hidden.0.weight"])  # of pairs
    assert torch.equal(stepped["hidden.0.weight"], start["hidden.0.weight"])
    assert_equal(stepped, lerp(found, start, report.relaxation))


def test_nothing_is_drawn_to_a_start_whose_hidden_weights_are_taken_back():
    torch.manual_seed(1)
    net = Net()
    before = state(net)
    settings = Settings(beta=0.02, relaxation=0.5, scale=ABSURD, witnesses="pairs")
    report = Reconstructor(settings).run(net, rows_of(net, loader()), "warm start")
    assert (report.accepted, report.relaxation) == (False, 0.0)
    assert_same_state(net, before)


class Spiking(Net):
    """Firing rates answer: no objective falls on the way to a solution that they reject."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.out = neuron.LIFNode(step_mode="m")

    def forward(self, x):
        functional.reset_net(self)
        return self.out(self.readout(self.hidden(self.steps(x)))).mean(0)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0]), F.one_hot(batch[1], 3).float())


@pytest.mark.parametrize("scale", ["auto", 1e-3])
def test_before_spiking_outputs_only_an_accepted_solution_draws(scale):
    callback = ConvexReconstruction(
        loss="squared", beta=0.01, scale=scale, witnesses="keep", max_overhead=None, warm_start=False, final_solve=False
    )
    _, moments, _ = fit(callback, kind=Spiking, epochs=2)
    report = callback.reports[0]
    assert report.accepted == (scale == "auto")
    assert report.relaxation == (0.3 if report.accepted else 0.0)
    found, validated, stepped = (moments.seen[m][k] for m, k in (("solved", 0), ("validated", 0), ("stepped", 1)))
    assert_equal(stepped, lerp(found, validated, report.relaxation))


@pytest.mark.parametrize("accepted", [True, False])
def test_where_validations_are_compared_only_an_accepted_solution_draws_and_none_is_shown(accepted):
    class Comparing(pl.Callback):
        compares_validations = True

    arguments = {} if accepted else {"scale": ABSURD}
    callback = ConvexReconstruction(
        beta=0.02, max_overhead=None, warm_start=False, final_solve=False, gap_tolerance=1e-8, **arguments
    )
    _, moments, _ = fit(callback, Comparing(), epochs=2)
    report = callback.reports[0]
    assert (report.accepted, report.relaxation) == (accepted, 0.3 if accepted else 0.0)
    found, validated, stepped = (moments.seen[m][k] for m, k in (("solved", 0), ("validated", 0), ("stepped", 1)))
    assert_equal(validated, stepped)
    assert torch.equal(found["readout.weight"], stepped["readout.weight"]) != accepted
    if accepted:  # trained on for good, so solved to the tolerance that was asked for
        assert report.gap <= 1.2e-8
        assert report.gap_written > report.gap


@pytest.mark.parametrize("apply", ["shadow", "auto"])
def test_a_dry_run_draws_nothing(apply):
    arguments = {"beta": 0.02, "apply": apply, "max_overhead": None}
    dry, _, _ = fit(callback := ConvexReconstruction(**arguments, dry_run=True))
    plain, _, _ = fit(None)
    assert any(report.accepted for report in callback.reports)
    assert_same_state(dry, state(plain))


class Normed(Net):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden.insert(1, nn.Identity())
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x):
        return super().forward(self.norm(x))


@pytest.mark.parametrize("scale", ["auto", ABSURD])
def test_statistics_that_are_trained_on_are_those_of_training(scale):
    """Those of an accepted solution stand in with it, those of a rejected one do not."""
    callback = ConvexReconstruction(
        beta=0.02, scale=scale, max_overhead=None, warm_start=False, final_solve=False, witnesses="keep"
    )
    _, moments, _ = fit(callback, kind=Normed, epochs=2)
    accepted = callback.reports[0].accepted
    assert accepted == (scale == "auto")
    found, validated, stepped = (moments.seen[m][k] for m, k in (("solved", 0), ("validated", 0), ("stepped", 1)))
    for name in ("norm.running_mean", "norm.running_var"):
        assert torch.equal(found[name], stepped[name])
        assert torch.equal(found[name], validated[name]) != accepted
    assert not torch.equal(found["readout.weight"], stepped["readout.weight"])


# -- resume -------------------------------------------------------------------------------------------------------


class Crash(pl.Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, 2):
            raise RuntimeError("power cut")


@pytest.mark.parametrize("loss", [None, "cross_entropy", "hinge", "squared"], ids=lambda loss: loss or "control")
@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_a_run_with_default_arguments_is_resumed_bit_for_bit(tmp_path, epoch, loss):
    """From a checkpoint of any epoch: penalties, budget, judges, shown and drawn readouts go on."""

    def run(folder, *others, **kwargs):
        torch.manual_seed(99 if kwargs else 5)
        net, callbacks = Net(lr=0.002), [ConvexReconstruction(loss=loss, max_overhead=40.0)] if loss else []
        saves = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
        fit = trainer(*callbacks, saves, *others, max_epochs=6, checkpoint=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit.fit(net, DataLoader(TensorDataset(*rows()), batch_size=64), loader(seed=1), **kwargs)
        return net, fit, callbacks

    whole, uninterrupted, ours = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "crashed", Crash(epoch))
    path = tmp_path / f"crashed/epoch={epoch - 1}.ckpt"
    resumed, again, theirs = run(tmp_path / "crashed", ckpt_path=path, weights_only=True)
    assert_same_state(resumed, state(whole))
    torch.testing.assert_close(
        again.optimizers[0].state_dict(), uninterrupted.optimizers[0].state_dict(), rtol=0, atol=0
    )
    if loss:
        timeless = [
            [{k: v for k, v in r.state().items() if not k.startswith("seconds")} for r in callback.reports]
            for callback in (*ours, *theirs)
        ]
        assert timeless[0] == timeless[1]
        assert len(timeless[0]) >= 4
        assert {report["judge"] for report in timeless[0]} == {"validation"}
        assert any(report["relaxation"] > 0 for report in timeless[0])
