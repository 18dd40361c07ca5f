import logging
import os
import warnings
from itertools import pairwise

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from networks import Net, assert_same_state, fitted, loader, occasions, state, trainer
from torch.nn import functional as F

from lightning_cvxsnn import ConvexReconstruction
from lightning_cvxsnn.reconstruction.reconstructor import Reconstructor


class Events(pl.Callback):
    """What happened to the readout, in order."""

    def __init__(self, callback):
        self.callback, self.seen = callback, []

    def note(self, name, module):
        self.seen.append((name, len(self.callback.reports), module.readout.weight.detach().clone()))

    def on_train_epoch_start(self, trainer, pl_module):
        self.note("epoch", pl_module)

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.note("validation", pl_module)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.note("checkpoint", pl_module)


def test_when_it_solves():
    callback = ConvexReconstruction(max_overhead=None)
    fitted(callback, max_epochs=3)
    assert occasions(callback) == [("warm start", 0), ("periodic solve", 1), ("periodic solve", 2), ("final solve", 3)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"every_n_epochs": 2}, [("warm start", 0), ("periodic solve", 2), ("periodic solve", 4), ("final solve", 5)]),
        ({"warm_start": False, "every_n_epochs": 3}, [("periodic solve", 3), ("final solve", 5)]),
        ({"every_n_epochs": 0}, [("warm start", 0), ("final solve", 5)]),
        ({"every_n_epochs": 0, "final_solve": False}, [("warm start", 0)]),
        ({"every_n_epochs": 5, "final_solve": False}, [("warm start", 0), ("periodic solve", 5)]),
        ({"warm_start": False, "every_n_epochs": 0, "final_solve": False}, []),
    ],
)
def test_the_schedule(arguments, expected):
    callback = ConvexReconstruction(beta=0.02, max_overhead=None, **arguments)
    fitted(callback, max_epochs=5)
    assert occasions(callback) == expected


def test_max_steps_ends_with_a_final_solve():
    callback = ConvexReconstruction(beta=0.02)
    _, run = fitted(callback, max_epochs=-1, max_steps=6)
    assert run.global_step == 6
    assert occasions(callback)[-1][0] == "final solve"
    assert callback.reports[-1].step == 6


def test_a_shortened_epoch_ends_with_a_solve():
    callback = ConvexReconstruction(beta=0.02, max_overhead=None)
    _, run = fitted(callback, max_epochs=2, limit_train_batches=2)
    assert run.global_step == 4
    assert [report.step for report in callback.reports] == [0, 2, 4]


def test_the_solve_comes_after_the_last_batch_and_before_its_validation():
    callback = ConvexReconstruction(beta=0.02, max_overhead=None)
    events = Events(callback)
    fitted([callback, events], validation=True, max_epochs=2)
    assert [(name, solves) for name, solves, _ in events.seen] == [
        ("epoch", 1),
        ("validation", 2),
        ("epoch", 2),
        ("validation", 3),
    ]


def test_validated_weights_are_saved_weights(tmp_path):
    callback = ConvexReconstruction(beta=0.02)
    events = Events(callback)
    checkpoint = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_top_k=-1)
    fitted([checkpoint, callback, events], validation=True, max_epochs=2, checkpoint=True)
    weights = [weight for name, _, weight in events.seen if name != "epoch"]
    names = [name for name, _, _ in events.seen if name != "epoch"]
    assert names == ["validation", "checkpoint"] * 2
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], weights[3])


def test_early_stopping_gets_a_last_solve_of_its_own_file(tmp_path):
    class Worse(Net):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", float(self.current_epoch))

    callback = ConvexReconstruction(beta=1e-3, every_n_epochs=50, witnesses="keep")
    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="mine", monitor="val_loss")
    stopping = EarlyStopping("val_loss", patience=1)
    net = Worse(lr=1e-4)
    fitted([callback, checkpoint, stopping], net, validation=True, max_epochs=50, checkpoint=True)
    assert occasions(callback) == [("warm start", 0), ("final solve", 2)]
    assert callback.reports[-1].accepted
    assert sorted(os.listdir(tmp_path)) == ["convex-last.ckpt", "mine.ckpt"]
    mine = torch.load(tmp_path / "mine.ckpt", weights_only=True)
    last = torch.load(tmp_path / "convex-last.ckpt", weights_only=True)
    assert torch.equal(last["state_dict"]["readout.weight"], net.readout.weight)
    assert not torch.equal(mine["state_dict"]["readout.weight"], net.readout.weight)
    assert len(mine["callbacks"][callback.state_key]["reports"]) == 1


def test_an_earlier_last_checkpoint_is_never_overwritten(tmp_path):
    (tmp_path / "convex-last.ckpt").write_text("precious")
    callback = ConvexReconstruction(beta=1e-3, every_n_epochs=0, witnesses="keep")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted([callback, ModelCheckpoint(dirpath=tmp_path)], Net(lr=1e-4), max_epochs=1, checkpoint=True)
    assert callback.reports[-1].accepted
    assert (tmp_path / "convex-last.ckpt").read_text() == "precious"
    assert (tmp_path / "convex-last-v1.ckpt").exists()


def test_without_checkpoints_nothing_is_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callback = ConvexReconstruction(beta=1e-3, every_n_epochs=0)
    fitted(callback, max_epochs=1)
    assert callback.reports[-1].reason.startswith("final solve")
    assert os.listdir(tmp_path) == []


def test_fast_dev_run_solves_nothing():
    callback = ConvexReconstruction()
    torch.manual_seed(0)
    run = trainer(callback, fast_dev_run=True)
    run.fit(Net(), loader(), loader())
    assert callback.reports == []


def test_a_warm_start_that_replaces_is_the_network_that_trains():
    callback = ConvexReconstruction(beta=0.02, apply="replace", every_n_epochs=0, final_solve=False, l1_ratio=1.0)
    events = Events(callback)
    fitted([callback, events], max_epochs=1)
    (report,) = callback.reports
    assert report.accepted
    assert report.scale == 0.3
    first = events.seen[0][2]
    assert int((first != 0).any(0).sum()) == report.active


@pytest.mark.parametrize(
    "off",
    [{"warm_start": False, "every_n_epochs": 0, "final_solve": False}, {"dry_run": True}],
    ids=["everything off", "dry run"],
)
@pytest.mark.parametrize("gain", [3.0, 0.05], ids=["alive", "dead"])
def test_without_writes_training_is_bitwise_that_without_the_callback(off, gain):
    class Noisy(Net):
        """Draws random numbers in training and keeps batch statistics and metrics."""

        def __init__(self):
            super().__init__(gain=gain)
            self.norm = torch.nn.BatchNorm1d(6)
            self.dropout = torch.nn.Dropout(0.2)
            self.metric = torchmetrics.MeanMetric()
            self.rows = torchmetrics.SumMetric()

        def forward(self, x):
            self.rows.update(len(x))
            self.log("size", float(len(x)), on_step=True, on_epoch=True, batch_size=len(x))
            return super().forward(self.dropout(self.norm(x)))

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.metric.update(loss)
            return loss

        def on_train_end(self):
            self.total = torch.stack([self.metric.compute(), self.rows.compute()])

    results = []
    for callbacks in ([], [ConvexReconstruction(**off)]):
        torch.manual_seed(3)
        net = Noisy()
        run = trainer(*callbacks, max_epochs=3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run.fit(net, loader(shuffle=True), loader(seed=1))
        results.append((net, run.optimizers[0].state_dict(), torch.get_rng_state(), dict(run.callback_metrics)))
    (plain, plain_optimizer, plain_rng, plain_metrics), (net, optimizer, rng, metrics) = results
    assert_same_state(net, state(plain))
    assert torch.equal(rng, plain_rng)
    assert torch.equal(net.total, plain.total)
    assert metrics == plain_metrics
    torch.testing.assert_close(optimizer["state"], plain_optimizer["state"], rtol=0, atol=0)


def test_a_pretrained_network_keeps_its_hidden_weights_under_default_arguments():
    net, _ = fitted([], max_epochs=5)
    net.readout.reset_parameters()
    hidden = [p.clone() for p in net.hidden.parameters()]

    class Frozen(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            assert all(torch.equal(a, b) for a, b in zip(hidden, pl_module.hidden.parameters(), strict=True))
            trainer.should_stop = True
            return -1

        def on_train_epoch_start(self, trainer, pl_module):
            assert all(torch.equal(a, b) for a, b in zip(hidden, pl_module.hidden.parameters(), strict=True))

    callback = ConvexReconstruction()
    net.lr = 0.0
    fitted([callback, Frozen()], net, max_epochs=1)
    assert callback.reports[0].accepted
    assert all(torch.equal(a, b) for a, b in zip(hidden, net.hidden.parameters(), strict=True))


def test_optimizer_history_of_the_written_readout_is_dropped():
    class Check(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            optimizer = trainer.optimizers[0]
            accepted = callback.reports[-1].accepted
            assert (pl_module.readout.weight in optimizer.state) != accepted
            assert pl_module.hidden[0].weight in optimizer.state
            seen.append(accepted)

    seen = []
    callback = ConvexReconstruction(beta=0.02, scale=1.0, warm_start=False, apply="replace", max_overhead=None)
    fitted([callback, Check()], Net(lr=1e-4), max_epochs=2)
    assert any(seen)


def test_hidden_weights_that_no_optimizer_trains_are_not_changed_in_silence():
    class Reservoir(Net):
        def configure_optimizers(self):
            return torch.optim.Adam(self.readout.parameters(), lr=self.lr)

    with pytest.warns(UserWarning, match=r"no optimizer trains: hidden\.0\.weight.*witnesses='keep'"):
        fitted(ConvexReconstruction(), Reservoir(), max_epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(ConvexReconstruction(witnesses="keep"), Reservoir(), max_epochs=1)
        fitted(ConvexReconstruction(), max_epochs=1)
    assert not [w for w in caught if "no optimizer" in str(w.message)]


def test_manual_optimisation_and_two_optimisers():
    class Manual(Net):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            loss = F.cross_entropy(self(batch[0]), batch[1])
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(self.hidden.parameters(), 0.1), torch.optim.Adam(self.readout.parameters())]

    callback = ConvexReconstruction(beta=0.02, max_overhead=None)
    fitted(callback, Manual(), max_epochs=2)
    assert len(callback.reports) == 3


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_low_precision_certifies_what_is_stored(precision):
    callback = ConvexReconstruction(beta=0.05, apply="replace", every_n_epochs=0, final_solve=False, scale=1.0)
    net, _ = fitted(callback, max_epochs=1, precision=precision)
    (report,) = callback.reports
    assert report.accepted
    assert 0 <= report.gap <= 1e-5
    if precision == "bf16-true":
        assert net.readout.weight.dtype == torch.bfloat16
        assert report.gap_written > report.gap


def test_a_final_solve_that_fails_is_tried_once(monkeypatch):
    tried = []

    def run(self, module, rows, occasion, *others):
        tried.append(occasion)
        raise RuntimeError("no solution")

    callback = ConvexReconstruction(warm_start=False)
    monkeypatch.setattr(Reconstructor, "run", run)
    with pytest.warns(UserWarning, match="leaves out the final solve, and training goes on. RuntimeError: no solution"):
        fitted(callback, max_epochs=1)
    assert tried == ["final solve"]


def test_fit_twice_goes_on_and_a_new_network_begins_anew():
    callback = ConvexReconstruction(beta=0.02)
    net, run = fitted(callback, max_epochs=1)
    run.fit_loop.max_epochs = 2
    run.fit(net, loader())
    assert [name for name, _ in occasions(callback)] == ["warm start", "final solve", "final solve"]
    run = trainer(callback, max_epochs=1)
    run.fit(Net(), loader())
    assert [name for name, _ in occasions(callback)] == ["warm start", "final solve"]


@pytest.mark.parametrize("apply", ["auto", "replace", "shadow"])
def test_beta_is_chosen_at_the_first_two_solves_and_then_followed_by_steps(apply):
    """At the fourth solve and the last one it moves by half a decade or stays, at others it stays."""
    torch.manual_seed(0)
    callback = ConvexReconstruction(apply=apply, max_overhead=None)
    fitted(callback, max_epochs=6)
    betas = [report.beta for report in callback.reports]
    steps = [after / before for before, after in pairwise(betas[1:])]
    for index, step in enumerate(steps, start=3):
        assert step == pytest.approx(1.0) or (index in (4, 7) and step**2 in (pytest.approx(10), pytest.approx(0.1)))
    assert len(betas) == 7
    assert len({report.l1_ratio for report in callback.reports[1:]}) == 1


@pytest.mark.parametrize("ratio", ["auto", 0.0, 0.4])
def test_a_given_beta_is_reported_as_it_was_given(ratio):
    callback = ConvexReconstruction(beta=0.05, l1_ratio=ratio, max_overhead=None)
    fitted(callback, max_epochs=3)
    assert {report.beta for report in callback.reports} == {0.05}
    assert ratio == "auto" or {report.l1_ratio for report in callback.reports} == {ratio}


def test_auto_chooses_a_start_for_fresh_weights_alone(caplog):
    torch.manual_seed(3)
    fresh, chosen = Net(lr=0.0), Net(lr=0.0)
    with torch.no_grad():
        chosen.hidden[0].weight.mul_(2)  # no constructor draws these
    for net, replaced in ((fresh, True), (chosen, False)):
        before = net.hidden[0].weight.clone()
        with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
            fitted(ConvexReconstruction(every_n_epochs=0, final_solve=False), net, max_epochs=1)
        assert torch.equal(net.hidden[0].weight, before) != replaced
        assert ("starts from a first layer that tells pairs of rows apart" in caplog.text) == replaced
        caplog.clear()
