"""What people do to a sweep between two runs of it, and what their own code does in it."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from sweeps import BASE, ablate, cells, read, states, write

from lightning_cvxsnn.ablation.metric_names import better_mode
from lightning_cvxsnn.ablation.results import read_results
from lightning_cvxsnn.ablation.sweep import Sweep
from lightning_cvxsnn.cli import main

pytestmark = pytest.mark.usefixtures("elsewhere")
TOLD = """

import lightning_cvxsnn


class OneName(lightning_cvxsnn.LitSNN):
    def validation_step(self, batch, index):
        self.log("right", 0.25)

    def test_step(self, batch, index):
        self.log("right", 0.75)


class Helpful(lightning_cvxsnn.LitSNN):
    def training_step(self, batch, index):
        try:
            {}["internal"]
        except KeyError:
            raise RuntimeError("put the file at X")


class OnlyTraining(lightning_cvxsnn.LitSNN):
    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.log("fit_loss", loss)
        return loss

    validation_step = test_step = None
"""


def with_model(name, **keys):
    Path("mine.py").write_text(Path("mine.py").read_text() + TOLD)
    write(base={**BASE, "model": {"class_path": f"mine.{name}", "init_args": {"hidden": [8]}}}, **keys)


def test_the_report_is_of_the_cells_that_the_sweep_has_now(capsys):
    write(methods=["sg", "sg-calibrated"], seeds=[0, 1])
    assert ablate() == 0
    longer = {**BASE, "trainer": {**BASE["trainer"], "max_epochs": 2}}
    write(methods=["sg", "sg-calibrated"], base=longer, seeds=[2])
    capsys.readouterr()
    assert ablate() == 0
    assert "4 cells of an earlier sweep in run are left out of the report." in capsys.readouterr().out
    found = read_results("run")
    assert sorted(found.cells["seed"]) == [2, 2]
    assert len(cells()) == 6
    assert set(found.history["id"]) == set(found.cells["id"])


def test_other_threads_are_another_sweep(capsys):
    write()
    assert ablate() == 0
    write(threads=2)
    assert ablate() == 2
    assert "had another configuration" in capsys.readouterr().err
    (place,) = cells().values()
    assert read(place, "cell.json")["threads"] == 1


def test_null_in_a_printed_configuration_says_nothing():
    unsaid = {"logger": None, "enable_checkpointing": None, "default_root_dir": None, "enable_progress_bar": None}
    write(base={**BASE, "trainer": {**BASE["trainer"], **unsaid}})
    assert ablate() == 0
    assert not Path("lightning_logs").exists()
    assert not list(Path().rglob("*.ckpt"))
    config = yaml.safe_load((next(iter(cells().values())) / "config.yaml").read_text())
    assert config["trainer"]["logger"] is False
    assert "default_root_dir" not in config["trainer"]


def test_a_test_does_not_take_the_name_of_a_validation():
    with_model("OneName", metric="right")
    assert ablate() == 0
    (place,) = cells().values()
    assert read(place, "result.json")["metrics"] == {"right": 0.25, "test/right": 0.75}


def test_the_error_is_the_one_that_was_raised():
    with_model("Helpful")
    assert ablate() == 1
    (state,) = states().values()
    assert state["error"] == "RuntimeError: put the file at X"


def test_a_metric_of_training_alone_is_told_as_such(capsys):
    with_model("OnlyTraining", metric="fit_loss")
    assert ablate() == 2
    assert "what training_step logs is not compared" in capsys.readouterr().err


def test_a_cell_that_was_stopped_is_not_told_as_running(capsys):
    write()
    assert ablate() == 0
    (place,) = cells().values()
    (place / "state.json").write_text(json.dumps({**read(place, "state.json"), "state": "running"}))
    capsys.readouterr()
    assert ablate("--dry-run") == 0
    assert "stopped, to train again" in capsys.readouterr().out
    with FileLock(place / "lock"):
        assert ablate("--dry-run") == 0
    assert ": running" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["result.json", "cell.json"])
def test_a_finished_cell_without_a_file_is_named(name, capsys):
    write()
    assert ablate() == 0
    (place,) = cells().values()
    (place / name).unlink()
    assert ablate() == 2
    assert place.name in capsys.readouterr().err
    shutil.rmtree(place)
    assert ablate() == 0


@pytest.mark.parametrize("command", ["ablate -c sweep.yaml --output=taken/below", "report run --output=taken/below"])
def test_a_place_that_cannot_be_written_is_named(command, capsys):
    write()
    assert ablate() == 0
    Path("taken").write_text("a file")
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    assert "taken" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seed_keys": 3}, "seed_keys: 3. Expected a list"),
        ({"seed_keys": "data.init_args.seed"}, "Expected a list of dotted keys"),
        ({"baseline": ["sg"]}, "Found baseline"),
        ({"metric": 3}, "Found metric: 3"),
        ({"metric": None}, "Found metric: None"),
        ({"choose": {"key": "model.init_args.lr", "values": [1], "metric": [3]}}, "in choose"),
        ({"tasks": {"e": {"preset": "dgits"}}}, "Found 'dgits' in tasks as a preset. Expected one of"),
    ],
)
def test_wrong_types_end_the_command_with_one_line(keys, message, capsys):
    write(**keys)
    assert ablate() == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("metric", ["testacc", "test1_acc", "acc_test2", "test/accuracy", "TestAcc"])
def test_a_choice_by_test_rows_is_refused(metric, capsys):
    write(choose={"key": "model.init_args.lr", "values": [0.1], "metric": metric})
    assert ablate() == 2
    assert "Expected one of the validation rows" in capsys.readouterr().err


def test_latest_is_no_test():
    choose = {"key": "model.init_args.lr", "values": [0.1], "metric": "val/latest"}
    assert Sweep({"base": BASE, "methods": ["sg"], "choose": choose}).choose["metric"] == "val/latest"


@pytest.mark.parametrize(
    ("names", "mode"),
    [
        (
            "brier_score test/loss valLoss val_nll ce cross_entropy val_bce val_ppl val_wer mape val_ece val_err",
            "min",
        ),
        (
            "rmse nrmse mae val_error testloss duality_gap top1_error iou_loss val_errors val_losses val_mse2",
            "min",
        ),
        ("val_accuracy val_loss_free_acc Acc top5 BLEU f1 val/latest success_rate loss_map", "max"),
    ],
)
def test_which_value_is_better_by_the_words_of_a_name(names, mode):
    assert {name: better_mode(name) for name in names.split()} == dict.fromkeys(names.split(), mode)
