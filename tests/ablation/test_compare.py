"""Two runs side by side: cells, and logs of Lightning's loggers."""

import sys

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from run_folders import write_cell, write_sweep

from lightning_cvxsnn import DigitsDataModule, LitSNN
from lightning_cvxsnn.ablation.compare import compare_runs
from lightning_cvxsnn.cli import main


def write_csv(folder, **metrics):
    folder.mkdir(parents=True)
    lines = [",".join(["epoch", "step", *metrics])]
    lines += [
        f"{n},{10 * n}," + ",".join(map(str, values)) for n, values in enumerate(zip(*metrics.values(), strict=True))
    ]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_ends_bests_and_what_only_one_has(tmp_path):
    a = write_csv(tmp_path / "a", val_acc=[0.1, 0.9, 0.8], val_loss=[2.0, 0.5, 0.7], only=[1, 1, 1])
    b = write_csv(tmp_path / "b", val_acc=[0.2, 0.7, ""], val_loss=[3.0, "nan", 0.9], other=[1, 1, 1])
    frame = compare_runs(a, b).set_index("metric")
    assert list(frame.index) == ["val_acc", "val_loss"]
    assert frame.loc["val_acc", ["final_a", "final_b", "best_a", "best_b"]].tolist() == [0.8, 0.7, 0.9, 0.7]
    assert frame.loc["val_loss", ["final_a", "final_b", "best_a", "best_b"]].tolist() == [0.7, 0.9, 0.5, 0.9]
    assert frame["difference"].tolist() == pytest.approx([-0.1, 0.2])
    assert frame["best"].tolist() == ["max", "min"]


def test_the_newest_version_of_a_folder_counts(tmp_path):
    for number in (2, 10, 9):
        write_csv(tmp_path / f"logs/version_{number}", acc=[number])
    assert compare_runs(tmp_path / "logs", tmp_path / "logs/version_2")["final_a"].item() == 10


def test_a_cell_beside_logs_of_lightning(tmp_path):
    cell = write_cell(write_sweep(tmp_path / "run"), "sg", 0, 0.9)
    logs = write_csv(tmp_path / "logs", val_accuracy=[0.4, 0.5])
    frame = compare_runs(cell, logs)
    assert frame["metric"].tolist() == ["val_accuracy"]
    assert frame["final_b"].item() == 0.5


@pytest.mark.filterwarnings("ignore")
def test_both_loggers_of_one_fit_tell_the_same(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    torch.manual_seed(0)
    loggers = [CSVLogger(tmp_path / "csv", name=""), TensorBoardLogger(tmp_path / "events", name="")]
    trainer = Trainer(max_epochs=2, logger=loggers, accelerator="cpu", enable_checkpointing=False, log_every_n_steps=5)
    trainer.fit(LitSNN(hidden=[16]), DigitsDataModule())
    frame = compare_runs(tmp_path / "csv", tmp_path / "events").set_index("metric")
    assert {"val_accuracy", "val_loss"} <= set(frame.index)
    assert frame["difference"].abs().max() < 1e-6
    assert frame["best_a"].tolist() == pytest.approx(frame["best_b"].tolist(), rel=1e-6)


def test_logs_of_tensorboard_without_it(tmp_path, monkeypatch):
    (tmp_path / "events.out.tfevents.1.machine").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(MisconfigurationException, match="pip install tensorboard"):
        compare_runs(tmp_path, tmp_path)


def test_the_command_prints_a_table_and_draws_curves(tmp_path, capsys):
    a = write_csv(tmp_path / "a", val_acc=[0.1, 0.9, 0.8])
    b = write_csv(tmp_path / "b", val_acc=[0.2, 0.7, 0.75])
    main(["compare", str(a), str(b), "--output", str(tmp_path / "curves.svg")])
    printed = capsys.readouterr().out
    assert printed.startswith(f"A = {a}, B = {b}\n")
    assert "val_acc 0.8 0.75 -0.05 0.9 (max) 0.75 (max)" in " ".join(printed.split())
    assert printed.endswith(f"Wrote {tmp_path / 'curves.svg'}\n")
    assert ">val_acc</text>" in (tmp_path / "curves.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "a", "empty"], "Found no logs in empty."),
        (["compare", "a", "other"], "Found no metric that both runs logged (A: val_acc; B: loss)."),
        (["compare", "a", "a", "--output", "curves.txt"], "Expected a file that ends in .png, .svg or .pdf."),
        (["report", "a"], "Found no cells/ in a."),
    ],
)
def test_what_cannot_be_compared_ends_with_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "a", val_acc=[0.1])
    write_csv(tmp_path / "other", loss=[0.1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["report", "runs"], ["ablate", "-c", "sweep.yaml"]])
def test_missing_packages_are_named_with_the_extra(arguments, monkeypatch, capsys):
    """Also by ``ablate`` before it trains, though only its report wants them."""
    monkeypatch.setitem(sys.modules, "itables", None)
    for name in [name for name in sys.modules if name.startswith("lightning_cvxsnn.ablation")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("lightning_cvxsnn.ablation.report", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "Found no package itables. Expected those of the extra `ablate`" in capsys.readouterr().err


def test_the_report_command_says_where_it_wrote(tmp_path, capsys):
    folder = write_sweep(tmp_path / "run")
    write_cell(folder, "sg", 0, 0.9)
    main(["report", str(folder)])
    assert capsys.readouterr().out.split() == ["Wrote", str(folder / "report.html")]
    assert (folder / "report.html").exists()
