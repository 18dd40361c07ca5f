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


@pytest.mark.parametrize("config", sorted((ROOT / "examples/configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_example_configuration_fits(config):
    main(["fit", f"--config={config}", *FAST])


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
