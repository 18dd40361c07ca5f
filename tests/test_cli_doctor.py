"""`cvxsnn doctor` examines what `fit` would train."""

from pathlib import Path

import pytest
import torch

from lightning_cvxsnn import LitSNN
from lightning_cvxsnn.cli import main

DIGITS = Path(__file__).parent.parent / "examples/configs/digits.yaml"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_the_doctor_prints_a_table_and_leaves_no_file(tmp_path, capsys):
    main(["doctor", "-c", str(DIGITS), "--model.hidden=[16, 16]", "--trainer.callbacks.witnesses=keep"])
    printed = capsys.readouterr().out
    assert printed.startswith("2 spiking layers on 1000 rows\n")
    assert "layers.1" in printed
    assert "ConvexReconstruction would" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_the_doctor_examines_a_checkpoint(tmp_path, capsys):
    small = ["-c", str(DIGITS), "--model.hidden=[16]", "--trainer.max_epochs=1", "--trainer.logger=false"]
    main(["fit", *small])
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    tables = []
    for arguments in ([], [f"--ckpt_path={checkpoint}"]):
        capsys.readouterr()
        main(["doctor", *small, *arguments])
        tables.append(capsys.readouterr().out)
    assert tables[0] != tables[1]
    other = {"state_dict": LitSNN(hidden=[8]).state_dict()}
    torch.save(other, "other.ckpt")
    Path("text.ckpt").write_text("no checkpoint\n")
    for wrong in ("none.ckpt", "other.ckpt", "text.ckpt"):
        with pytest.raises(SystemExit) as stop:
            main(["doctor", *small, f"--ckpt_path={wrong}"])
        assert stop.value.code == 2
        assert wrong in capsys.readouterr().err


SET_UP = """
import torch
from torch import nn
from spikingjelly.activation_based import neuron
import lightning_cvxsnn


class Late(lightning_cvxsnn.LitSNN):
    def __init__(self, dark: bool = False):
        super().__init__(hidden=[16])
        self.dark, self.late = dark, [self.readout]
        del self.readout

    def configure_model(self):
        self.readout = self.late.pop()

    def setup(self, stage):
        assert self.trainer.world_size == 1

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return (0 * x if self.dark else x), y


class Data(lightning_cvxsnn.DigitsDataModule):
    def __init__(self, dark: bool = False):
        super().__init__()
        self.dark = dark

    def setup(self, stage):
        assert self.trainer.world_size == 1
        super().setup(stage)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return (0 * x if self.dark else x), y
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("data", "dark"),
    [("late.Data", []), ("late.Data", ["--data.dark=true"]), ("DigitsDataModule", ["--model.dark=true"])],
)
def test_the_doctor_examines_what_the_trainer_sets_up_and_transfers(tmp_path, capsys, data, dark):
    (tmp_path / "late.py").write_text(SET_UP)
    main(["doctor", "--model=late.Late", f"--data={data}", "--trainer.precision=bf16-true", *dark])
    printed = capsys.readouterr().out
    if dark:  # as in fit, no row differs from another
        assert "would refuse" in printed
        assert "same pattern on every training row" in printed
    else:
        assert "would show its solution" in printed
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["late.py"]


def test_the_doctor_refuses_what_it_does_not_know(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "-c", str(DIGITS), "--depth=3"])
    assert stop.value.code == 2
    assert "depth" in capsys.readouterr().err
