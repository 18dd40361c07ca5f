import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_cvxsnn.cli import main
from lightning_cvxsnn.demo import run_demo

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cvxsnn"])  # LightningCLI looks


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
        ("ConvexReconstruction", "ConvexReconstuction", "has no attribute 'ConvexReconstuction'"),
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


def test_a_printed_configuration_runs(tmp_path, capsys):
    arguments = ["fit", "--trainer.callbacks=ConvexReconstruction", "--model=LitSNN", "--data=DigitsDataModule", *FAST]
    with pytest.raises(SystemExit):
        main([*arguments, "--print_config"])
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    main(["fit", "--config=mine.yaml"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.callbacks.betta=0.5"], "betta"),
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


def test_usage(capsys):
    main([])
    usage = capsys.readouterr().out
    main(["--help"])
    assert capsys.readouterr().out == usage
    for command in ("demo", "fit", "validate", "test"):
        assert f"  {command} " in usage


def test_the_installed_command_runs_the_demo():
    command = [Path(sys.executable).parent / "cvxsnn", "demo", "--epochs=1", "--hidden=[16]"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "80"})
    assert result.returncode == 0, result.stderr
    for name in ("SG, default weights", "SG, calibrated weights", "SG + ConvexReconstruction"):
        assert name in result.stdout


def test_the_demo_certifies_and_starts_ahead():
    default, calibrated, hybrid = run_demo(epochs=2, hidden=(32,))
    assert hybrid.gap is not None
    assert 0 <= hybrid.gap < 1e-5
    assert hybrid.start > calibrated.start + 0.2
    assert hybrid.start > default.start + 0.2
    assert hybrid.solves[1] == 3
    assert len(default.validation) == len(calibrated.validation) == len(hybrid.validation) == 2
    assert hybrid.seconds > hybrid.seconds_solves > 0
