"""What a callback remembers holds for one run of one network, and no solve ends a fit in mid-training."""

import copy
import pickle

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from networks import Net, loader, rows, state, trainer
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import ConvexReconstruction


def occasions(callback):
    return [report.reason.split(":")[0] for report in callback.reports]


def test_weights_put_back_begin_a_new_run():
    net, callback = Net(), ConvexReconstruction(beta=0.02, max_overhead=None)
    fresh = state(net)
    trainer(callback, max_epochs=3).fit(net, loader())
    first = [report.primal for report in callback.reports]
    assert occasions(callback) == ["warm start", "periodic solve", "periodic solve", "final solve"]
    net.load_state_dict(fresh)  # the next fold
    trainer(callback, max_epochs=3).fit(net, loader())
    assert [report.primal for report in callback.reports] == first


def test_another_trainer_goes_on_from_the_weights_that_are_there():
    net, callback = Net(), ConvexReconstruction(beta=0.02, max_overhead=None)
    trainer(callback, max_epochs=2).fit(net, loader())
    trainer(callback, max_epochs=2).fit(net, loader())
    assert occasions(callback) == ["warm start", *2 * ["periodic solve", "final solve"]]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_a_copy_of_a_callback_goes_on(again):
    net, callback = Net(), ConvexReconstruction(beta=0.02)
    trainer(callback, max_epochs=1).fit(net, loader())
    copied = again(callback)
    assert [report.state() for report in copied.reports] == [report.state() for report in callback.reports]
    other = Net()
    trainer(copied, max_epochs=1).fit(other, loader())
    assert occasions(copied) == ["warm start", "final solve"]
    assert len(callback.reports) == 2


class Sequence(Net):
    def steps(self, x):
        return x.transpose(0, 1)


class Growing(pl.LightningDataModule):
    """Sequences of four steps, and of seven from the third epoch on."""

    def train_dataloader(self):
        x, y = rows(120)
        steps = 4 if self.trainer.current_epoch < 2 else 7
        return DataLoader(TensorDataset(4 * x[:, None].expand(-1, steps, -1), y), batch_size=40)


def test_longer_sequences_are_proved_again():
    callback = ConvexReconstruction(beta=0.02, max_overhead=None)
    trainer(callback, max_epochs=4, reload_dataloaders_every_n_epochs=1).fit(Sequence(), Growing())
    assert occasions(callback) == ["warm start", *3 * ["periodic solve"], "final solve"]


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError])
def test_a_solve_that_fails_in_mid_training_is_left_out_and_training_goes_on(error):
    class Failing(Net):
        """Its forward fails in eval mode from the second epoch on."""

        def forward(self, x):
            if self.trainer.current_epoch and not self.training:
                raise error("on purpose")
            return super().forward(x)

    def run(*callbacks):
        torch.manual_seed(0)
        net = Failing()
        trainer(*callbacks, max_epochs=3).fit(net, loader(shuffle=True))
        return net

    callback = ConvexReconstruction(beta=0.02, max_overhead=None, warm_start=False, apply="shadow")
    with pytest.warns(UserWarning, match=r"leaves out the (periodic|final) solve, and training goes on.*on purpose"):
        net = run(callback)
    assert occasions(callback) == ["periodic solve"]
    alone = run()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), alone.parameters(), strict=True))


class Seen(pl.Callback):
    def __init__(self):
        self.epochs = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.epochs.append(trainer.current_epoch + 1)


@pytest.mark.parametrize(
    "flags", [{"check_val_every_n_epoch": 3}, {"check_val_every_n_epoch": None, "val_check_interval": 8}]
)
def test_shadows_are_made_where_a_validation_follows(flags):
    seen, callback = Seen(), ConvexReconstruction(beta=0.02, max_overhead=None, final_solve=False, apply="shadow")
    trainer(callback, seen, max_epochs=6, **flags).fit(Net(), loader(), loader())
    assert [report.epoch for report in callback.reports[1:]] == seen.epochs
    assert seen.epochs


def test_shadows_are_made_where_a_checkpoint_follows(tmp_path):
    callback = ConvexReconstruction(beta=0.02, max_overhead=None, final_solve=False, apply="shadow")
    saves = ModelCheckpoint(tmp_path, every_n_epochs=2, save_top_k=-1, save_on_train_epoch_end=True)
    trainer(callback, saves, max_epochs=5, checkpoint=True).fit(Net(), loader())
    assert [report.epoch for report in callback.reports[1:]] == [2, 4]


@pytest.mark.parametrize("apply", ["auto", "replace"])
def test_solves_that_are_trained_on_need_nobody_to_look(apply):
    callback = ConvexReconstruction(beta=0.02, max_overhead=None, apply=apply, final_solve=False)
    trainer(callback, max_epochs=3, check_val_every_n_epoch=3).fit(Net(), loader(), loader())
    assert [report.epoch for report in callback.reports[1:]] == [1, 2, 3]


@pytest.mark.parametrize("compares", [True, False])
def test_an_early_stopper_of_ones_own_can_say_that_it_compares_validations(compares):
    """Then what is validated after an epoch is what goes on training."""

    class Stopper(pl.Callback):
        compares_validations = compares
        shown = ()

        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking and trainer.current_epoch < 2:
                self.shown = (*self.shown, pl_module.readout.weight.clone())

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0 and trainer.current_epoch:
                same.append(torch.equal(self.shown[-1], pl_module.readout.weight))

    same, callback = [], ConvexReconstruction(loss="squared", beta=0.02, max_overhead=None)
    trainer(callback, Stopper(), max_epochs=3).fit(Net(lr=1e-3), loader(), loader())
    assert occasions(callback) == ["warm start", *2 * ["periodic solve"], "final solve"]
    assert all(report.accepted for report in callback.reports)
    assert {report.relaxation for report in callback.reports[1:3]} == {0.3}
    assert same == [compares, compares]


@pytest.mark.parametrize("apply", ["auto", "shadow"])
def test_a_fit_that_is_stopped_ends_with_a_solution(apply):
    class Stopper(pl.Callback):
        compares_validations = True

        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 1

    net = Net(lr=1e-3)
    callback = ConvexReconstruction(loss="squared", beta=0.02, max_overhead=None, apply=apply, judge="train")
    trainer(callback, Stopper(), max_epochs=9).fit(net, loader(), loader())
    assert occasions(callback) == ["warm start", *2 * ["periodic solve"], "final solve"]
    assert callback.reports[-1].accepted
    x, y = rows()
    loss = 0.5 * (net(x) - functional.one_hot(y, 3)).square().sum(1).mean()
    ratio, weight = callback.reports[-1].l1_ratio, net.readout.weight.double()
    penalty = callback.reports[-1].rho * (ratio * weight.abs() + (1 - ratio) / 2 * weight.square()).sum()
    assert float(loss + penalty) == pytest.approx(callback.reports[-1].primal, abs=1e-5)


def test_a_schedule_of_ones_own():
    class FirstEpochs(ConvexReconstruction):
        def should_solve(self, occasion, epoch):
            return occasion != "periodic solve" or epoch in (1, 3)

    callback = FirstEpochs(beta=0.02)
    trainer(callback, max_epochs=5).fit(Net(), loader())
    assert [report.epoch for report in callback.reports] == [0, 1, 3, 5]
