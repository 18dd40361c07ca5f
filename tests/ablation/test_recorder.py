import csv
import json

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from spikingjelly.activation_based import neuron

from lightning_cvxsnn import ConvexReconstruction, DigitsDataModule, LitSNN
from lightning_cvxsnn.ablation.recorder import Recorder


class Moody(LitSNN):
    """What a pass too many would change: random numbers in training, batch norms, and neurons that are not reset."""

    def __init__(self):
        super().__init__(hidden=[16])
        self.norm = torch.nn.BatchNorm1d(10)
        self.carried = neuron.IFNode(step_mode="s")

    def forward(self, x):
        logits = self.norm(torch.nn.functional.dropout(super().forward(x), 0.2, self.training))
        if self.training and x.shape[0] == 64:
            logits = logits + 0.1 * self.carried(logits.detach())
        return logits


def fitted(*callbacks, net=Moody, **trainer):
    pl.seed_everything(3, verbose=False)
    module = net()
    options = {"max_epochs": 2, "limit_train_batches": 4, "num_sanity_val_steps": 0, "logger": False} | trainer
    fit = pl.Trainer(
        accelerator="cpu", callbacks=list(callbacks), enable_progress_bar=False, enable_model_summary=False, **options
    )
    fit.fit(module, datamodule=DigitsDataModule())
    return module, fit


def history(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("convex", [False, True])
def test_training_is_the_same_bit_for_bit(tmp_path, convex):
    def ours():
        return [ConvexReconstruction()] if convex else []

    net = LitSNN if convex else Moody
    plain, _ = fitted(*ours(), net=net, enable_checkpointing=False)
    watched, _ = fitted(*ours(), Recorder(tmp_path), net=net, enable_checkpointing=False)
    state = watched.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    assert [line["epoch"] for line in history(tmp_path)] == ["0", "1", "2"]


@pytest.mark.filterwarnings("ignore")
def test_lines_hold_what_lightning_validates_and_the_first_is_of_the_untrained_network(tmp_path):
    class Untrained(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}

    untrained = Untrained()
    module, trainer = fitted(untrained, Recorder(tmp_path), enable_checkpointing=False)
    lines = history(tmp_path)
    (last,) = trainer.validate(module, datamodule=trainer.datamodule, verbose=False)
    assert {name: float(lines[-1][name]) for name in last} == last
    module.load_state_dict(untrained.weights)
    (first,) = trainer.validate(module, datamodule=trainer.datamodule, verbose=False)
    assert {name: float(lines[0][name]) for name in first} == first
    assert [line["step"] for line in lines] == ["0", "4", "8"]
    assert lines[0]["train_loss"] == ""
    assert float(lines[-1]["train_loss"]) > 0


@pytest.mark.filterwarnings("ignore")
def test_callbacks_that_compare_or_save_see_no_validation_before_training(tmp_path):
    seen = []

    class Watching(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append((dict(trainer.callback_metrics), pl_module.training, trainer.sanity_checking))

    stopping, saving = EarlyStopping("val_loss", patience=5), ModelCheckpoint(tmp_path / "saved", save_top_k=-1)
    fitted(stopping, saving, Watching(), Recorder(tmp_path))
    assert seen[0] == ({}, True, False)
    assert stopping.wait_count <= 1
    assert len(list((tmp_path / "saved").iterdir())) == 2


@pytest.mark.filterwarnings("ignore")
def test_the_users_own_sanity_check_is_no_line(tmp_path):
    fitted(Recorder(tmp_path), num_sanity_val_steps=2, max_epochs=1, enable_checkpointing=False)
    assert [line["epoch"] for line in history(tmp_path)] == ["0", "1"]


@pytest.mark.filterwarnings("ignore")
def test_validations_within_an_epoch(tmp_path):
    fitted(Recorder(tmp_path), val_check_interval=0.5, enable_checkpointing=False)
    assert [line["epoch"] for line in history(tmp_path)] == ["0", "0.5", "1", "1.5", "2"]


@pytest.mark.filterwarnings("ignore")
def test_reports_of_the_solves_and_cpu_time_of_the_warm_start(tmp_path):
    callback, recorder = ConvexReconstruction(), Recorder(tmp_path)
    fitted(callback, recorder, net=LitSNN, enable_checkpointing=False)
    assert json.loads((tmp_path / "reports.json").read_text()) == [report.state() for report in callback.reports]
    assert len(callback.reports) >= 2
    times = [float(line["cpu_seconds"]) for line in history(tmp_path)]
    assert 0 < times[0] < times[1] < times[2] <= recorder.cpu_seconds
    assert recorder.trained_parameters == sum(p.numel() for p in LitSNN().parameters())
    assert (recorder.epochs, recorder.steps) == (2, 8)


@pytest.mark.filterwarnings("ignore")
def test_the_fits_of_a_cell_are_counted_on(tmp_path):
    recorder = Recorder(tmp_path, stages=2)
    fitted(ConvexReconstruction(), recorder, net=LitSNN, enable_checkpointing=False)
    solves, seconds = len(recorder.reports), recorder.cpu_seconds
    fitted(recorder, max_epochs=1, enable_checkpointing=False)
    assert [(line["stage"], line["epoch"], line["step"]) for line in history(tmp_path)] == [
        ("1", "0", "0"),
        ("1", "1", "4"),
        ("1", "2", "8"),
        ("2", "2", "8"),
        ("2", "3", "12"),
    ]
    assert len(recorder.reports) == solves
    assert float(history(tmp_path)[3]["cpu_seconds"]) >= seconds - 1e-4
    assert recorder.epochs == 3
