import csv
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.trainer.connectors import data_connector
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import lightning_cvxsnn
from lightning_cvxsnn import LitSNN
from lightning_cvxsnn.cli import main
from lightning_cvxsnn.demo import run_demo

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


FAST = ["--trainer.max_epochs=1", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]


CONFIGS = sorted((ROOT / "examples/configs").glob("*.yaml"))
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


def printed(arguments, capsys):
    """The configuration that ``fit`` would run."""
    with pytest.raises(SystemExit) as stop:
        main(["fit", *arguments, "--print_config"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
@every_config
def test_every_example_configuration_fits_with_overrides_and_is_saved(config, tmp_path, capsys):
    overrides = [
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1",
        "--trainer.enable_checkpointing=false",
        "--trainer.logger=CSVLogger",
        "--trainer.logger.save_dir=runs",
        "--trainer.callbacks.max_samples=200",
    ]
    main(["fit", f"--config={config}", *overrides])
    (metrics,) = tmp_path.rglob("metrics.csv")
    with open(metrics) as file:
        solves = [row for row in csv.DictReader(file) if row.get("convex/gap")]
    assert [(row["convex/epoch"], row["convex/step"]) for row in solves] == [("0.0", "0.0"), ("1.0", "2.0")]
    assert all(0 < float(row["convex/rows"]) <= 200 for row in solves)
    (saved,) = tmp_path.rglob("config.yaml")
    capsys.readouterr()
    again = yaml.safe_load(printed([f"--config={saved}"], capsys))
    assert again == yaml.safe_load(printed([f"--config={config}", *overrides], capsys))
    assert again["trainer"]["callbacks"][0]["init_args"]["max_samples"] == 200


@every_config
def test_the_printed_configuration_of_an_example_prints_itself(config, tmp_path, capsys):
    once = printed([f"--config={config}"], capsys)
    (tmp_path / "printed.yaml").write_text(once)
    assert printed(["--config=printed.yaml"], capsys) == once
    given, full = yaml.safe_load(config.read_text()), yaml.safe_load(once)
    (mine,), (callback,) = given["trainer"]["callbacks"], full["trainer"]["callbacks"]
    assert callback["class_path"] == "lightning_cvxsnn.ConvexReconstruction" == mine["class_path"]
    assert mine["init_args"].items() <= callback["init_args"].items()


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("every_n_epochs:", "every_epochs:", "Option 'every_epochs' is not accepted"),
        (
            "ConvexReconstruction",
            "ConvexReconstuction",
            "Found no class 'lightning_cvxsnn.ConvexReconstuction'. Expected",
        ),
        ("hidden:", "hiden:", "Option 'hiden' is not accepted"),
        ("trainer:", "triner:", "does not accept option 'triner"),
    ],
)
def test_a_typo_in_a_configuration_is_rejected_by_name(right, wrong, message, tmp_path, capsys):
    text = (ROOT / "examples/configs/digits.yaml").read_text()
    assert right in text
    (tmp_path / "typo.yaml").write_text(text.replace(right, wrong))
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config=typo.yaml"])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_callback_by_short_name_with_an_override(capsys):
    callback = ["--trainer.callbacks=ConvexReconstruction", "--trainer.callbacks.beta=0.5"]
    with pytest.raises(SystemExit):
        main(["fit", *callback, "--model=LitSNN", "--data=DigitsDataModule", "--print_config"])
    written = yaml.safe_load(capsys.readouterr().out)
    (found,) = written["trainer"]["callbacks"]
    assert found["class_path"].endswith("ConvexReconstruction")
    assert found["init_args"]["beta"] == 0.5
    assert found["init_args"]["witnesses"] == "auto"


def test_a_typo_in_a_file_is_told_with_the_name_that_may_be_meant(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("{trainer: {max_epoch: 2}, model: LitSNN, data: DigitsDataModule}")
    with pytest.raises(SystemExit):
        main(["fit", "--config=mine.yaml"])
    assert "does not accept option 'trainer.max_epoch'. Did you mean 'max_epochs'?" in capsys.readouterr().err


def test_a_printed_configuration_runs(tmp_path, capsys):
    arguments = ["fit", "--trainer.callbacks=ConvexReconstruction", "--model=LitSNN", "--data=DigitsDataModule", *FAST]
    with pytest.raises(SystemExit):
        main([*arguments, "--print_config"])
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    main(["fit", "--config=mine.yaml"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.callbacks.betta=0.5"], "Option 'betta' is not accepted. Did you mean 'beta'?"),
        (["--trainer.callbacks.loss=mse"], "mse"),
        (["--trainer.callbacks.beta=small"], "small"),
    ],
)
def test_a_typo_is_rejected(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(
            ["fit", "--trainer.callbacks=ConvexReconstruction", *arguments, "--model=LitSNN", "--data=DigitsDataModule"]
        )
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_fit_then_validate_and_test(tmp_path, capsys):
    config = f"--config={ROOT / 'examples/configs/digits.yaml'}"
    main(["fit", config, "--trainer.max_epochs=1", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=runs"])
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    (saved,) = tmp_path.rglob("config.yaml")
    for command in ("validate", "test"):
        main(
            [
                command,
                config,
                "--trainer.logger=false",
                f"--ckpt_path={checkpoint}",
                f"--trainer.default_root_dir={command}",
            ]
        )
        assert "accuracy" in capsys.readouterr().out
    assert yaml.safe_load(saved.read_text())["trainer"]["callbacks"][0]["init_args"]["every_n_epochs"] == 2


DIGITS = ROOT / "examples/configs/digits.yaml"


def test_an_interrupt_is_one_line(capsys, monkeypatch):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_cvxsnn.demo.show_demo", stopped)
    with pytest.raises(SystemExit) as stop:
        main(["demo"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "cvxsnn: stopped\n"


def test_usage(capsys):
    main([])
    usage = capsys.readouterr().out
    main(["--help"])
    assert capsys.readouterr().out == usage
    for command in ("demo", "fit", "validate", "test", "predict"):
        assert f"  {command} " in usage


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"cvxsnn {lightning_cvxsnn.__version__}\n"
    assert lightning_cvxsnn.__version__ == version("lightning-cvxsnn")


VALIDATE = ["validate", "--model=LitSNN", "--model.hidden=[8]", "--data=DigitsDataModule", "--trainer.logger=false"]


def test_lightning_warns_of_nothing_false(recwarn, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cvxsnn", "--something"])
    monkeypatch.setattr(data_connector, "suggested_max_num_workers", lambda devices: 16)
    main(VALIDATE)
    assert [str(warning.message) for warning in recwarn] == []


def test_the_same_folder_twice(tmp_path):
    config = [f"--config={ROOT / 'examples/configs/digits.yaml'}", "--trainer.logger=false", "--model.hidden=[8]"]
    for lr in (0.1, 0.2, 0.3):
        main(["test", *config, f"--model.lr={lr}"])
    kept = [yaml.safe_load((tmp_path / f"config{v}.yaml").read_text()) for v in ("", "-v1", "-v2")]
    assert [config["model"]["init_args"]["lr"] for config in kept] == [0.1, 0.2, 0.3]


def test_predict_saves_the_answers(tmp_path):
    main(["predict", *VALIDATE[1:]])
    answers = torch.load(tmp_path / "predictions_0.pt")
    assert [len(batch) for batch in answers] == [64] * 5 + [30]
    assert torch.cat(answers).dtype == torch.int64


def test_predict_on_several_loaders(tmp_path):
    sizes = ["--data.sizes=[8,8,8]", "--data.test_digits=[2,3]", "--model.last_width=8", "--trainer.logger=false"]
    main(["predict", "--model=AdditionSNN", "--data=AdditionDataModule", *sizes])
    ((two,), (three,)) = torch.load(tmp_path / "predictions_0.pt")
    assert (two.shape, three.shape) == ((8, 3), (8, 4))


CALLBACK = "--trainer.callbacks=ConvexReconstruction"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*VALIDATE, CALLBACK, "--trainer.callbacks.beta=-1"], "Invalid value beta=-1.0. Expected a positive number"),
        ([*VALIDATE, CALLBACK, "--trainer.callbacks.beta=small"], "Given value: small"),
        ([*VALIDATE, CALLBACK, "--trainer.callbacks+=ConvexReconstruction"], "each to name its own readout"),
        ([*VALIDATE, "--model.hidden=[]"], "Invalid value hidden=[]. Expected a list of positive integers."),
        ([*VALIDATE, "--model.lr=-1"], "Invalid value lr=-1.0. Expected a finite number >= 0."),
        ([*VALIDATE, "--data.batch_size=0"], "Invalid value batch_size=0. Expected an integer >= 1."),
        ([*VALIDATE, "--model.tau=1"], "Invalid value tau=1.0. Expected a number above 1."),
        ([*VALIDATE, "--trainer.max_epochs=many"], "Parser key \"trainer.max_epochs\": Expected a <class 'int'>"),
        ([*VALIDATE, "--trainer.accelerator=abacus"], "invalid accelerator name"),
        ([*VALIDATE, "--ckpt_path=nowhere.ckpt"], "nowhere.ckpt"),
        (
            ["validate", "--model=mine.ConvNett"],
            "Found no class 'mine.ConvNett'. Expected the import path of one, such",
        ),
        ([*VALIDATE, "--trainer.callbacks+=ConvexReconstrution"], "MyNet. Did you mean 'ConvexReconstruction'?"),
        ([*VALIDATE, "--trainer.callbacks+=EarlyStoping"], "MyNet. Did you mean 'EarlyStopping'?"),
        (["validate", "--model=LitSNN"], "arguments are required: validate.data"),
        (["validate", "--config=nowhere.yaml"], "File does not exist"),
        (["fitt"], "Found no command 'fitt'. Expected one of ablate, compare, demo, doctor, fit,"),
        (["ablat"], "validate. Did you mean 'ablate'?"),
        (["demo", "--epochs=0"], "Invalid value epochs=0. Expected an integer >= 1."),
        (["demo", "--lr=-1"], "Invalid value lr=-1.0."),
        (["demo", "--epochs=some"], 'Parser key "epochs"'),
        (["demo", "--hidden=0"], "Invalid value hidden=[0]. Expected a list of positive integers."),
    ],
)
def test_a_wrong_value_ends_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cvxsnn: error: ")]
    assert message in line
    assert len(line) < 400
    assert "Traceback" not in line


def test_what_a_class_cannot_import_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "imports_more.py").write_text("import not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit):
        main(["validate", "--model=imports_more.Net"])
    assert "class_path 'imports_more.Net': No module named 'not_installed'" in capsys.readouterr().err


def test_the_traceback_of_a_wrong_value(monkeypatch):
    monkeypatch.setenv("CVXSNN_TRACEBACK", "1")
    with pytest.raises(MisconfigurationException, match="epochs=0"):
        main(["demo", "--epochs=0"])


def test_an_error_of_the_users_code_keeps_its_traceback(monkeypatch):
    def broken(self, batch, batch_idx):
        raise ValueError("a mistake in validation_step")

    monkeypatch.setattr(LitSNN, "validation_step", broken)
    with pytest.raises(ValueError, match="a mistake in validation_step"):
        main(VALIDATE)


def test_the_installed_command_runs_the_demo():
    command = [Path(sys.executable).parent / "cvxsnn", "demo", "--epochs=1", "--hidden=[16]"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "80"})
    assert result.returncode == 0, result.stderr
    for name in ("SG, default weights", "SG, calibrated weights", "SG + ConvexReconstruction"):
        assert name in result.stdout


def test_the_demo_certifies_and_starts_ahead():
    default, calibrated, hybrid = run_demo(epochs=2, hidden=32)
    assert hybrid.gap is not None
    assert 0 <= hybrid.gap < 1e-3 * 3  # of log(10), to which what is only shown is solved
    assert hybrid.start > calibrated.start + 0.2
    assert hybrid.start > default.start + 0.2
    assert hybrid.solves[1] == 2  # the first and the last; the epochs are too short to pay for another
    assert len(default.validation) == len(calibrated.validation) == len(hybrid.validation) == 2
    assert hybrid.seconds > hybrid.seconds_solves > 0


def test_a_class_in_the_working_folder_is_found(tmp_path):
    (tmp_path / "mine.py").write_text("from lightning_cvxsnn import LitSNN\n\n\nclass Net(LitSNN): ...\n")
    command = [Path(sys.executable).parent / "cvxsnn", "fit", "--model=mine.Net", "--data=DigitsDataModule"]
    options = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"]
    result = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
