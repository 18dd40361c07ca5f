"""The shipped methods and tasks: they are valid, each method runs, and does what it says."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_cvxsnn import ConvexReconstruction, DigitsDataModule, LitSNN, ParallelSNN, XORDataModule
from lightning_cvxsnn.ablation.callbacks import (
    BestWeights,
    FreshWeights,
    StopBeforeTraining,
    TunedReservoir,
)
from lightning_cvxsnn.ablation.cell import config_name, run_cell
from lightning_cvxsnn.ablation.fits import check_cells, fit_of
from lightning_cvxsnn.ablation.reading import presets
from lightning_cvxsnn.ablation.sweep import Sweep, read_sweep

SWEEPS = Path(__file__).parents[2] / "benchmarks" / "paper"
BASE = {"trainer": {"accelerator": "cpu", "max_epochs": 1}}
SMALL = {
    "model.init_args": {"width": 12, "last_width": 24, "depth": 3},
    "data.init_args": {"steps": 5, "sizes": [200, 120, 120]},
}


def test_every_task_is_valid():
    check_cells(Sweep({"base": BASE, "tasks": list(presets("tasks")), "methods": ["sg", "hybrid"]}).cells())


def write_images(folder):
    """MNIST's files, of 30 random images."""
    folder.mkdir()
    values = {"images-idx3": np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)}
    values["labels-idx1"] = np.arange(30, dtype=np.uint8) % 10
    for name, array in values.items():
        header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"t10k-{name}-ubyte").write_bytes(header + array.tobytes())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", sorted(presets("tasks")))
def test_every_task_trains_and_is_tested(tmp_path, monkeypatch, task):
    """A batch of ten samples, at the paper's size: model and data fit together."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "mnist")
    few = {} if task == "digits" else {"data.init_args.sizes": [10, 10, 10]}
    base = {"trainer": {"accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 1, "limit_test_batches": 1}}
    (cell,) = Sweep({"base": base, "tasks": {task: {"preset": task, **few}}, "methods": ["sg"]}).cells()
    fit = fit_of(cell.configs[0], str(tmp_path), Callback())
    fit.trainer.fit(fit.model, datamodule=fit.datamodule)
    metrics = fit.trainer.test(fit.model, datamodule=fit.datamodule, verbose=False)
    assert all(name.startswith("test_") and value >= 0 for each in metrics for name, value in each.items())
    lengths = {"addition": 4, "tomita": 4, "automata": 4}
    assert len(metrics) == next((n for name, n in lengths.items() if task.startswith(name)), 1)


def test_every_method_is_valid():
    check_cells(Sweep({"base": BASE, "tasks": ["xor-t6-l5"], "methods": list(presets("methods"))}).cells())


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_is_valid(path):
    sweep = read_sweep(path)
    check_cells([*sweep.cells(), *sweep.choosing()])


def trained(callbacks, net=None, data=None, **options):
    pl.seed_everything(0, verbose=False)
    net = net or LitSNN(hidden=[32])
    options.setdefault("enable_checkpointing", False)
    fit = pl.Trainer(
        accelerator="cpu", max_epochs=3, callbacks=callbacks, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    fit.fit(net, datamodule=data or DigitsDataModule())
    return net, fit


class Hooks(Callback):
    """The names of the hooks that Lightning calls."""

    def __init__(self):
        self.called = []
        for name in ("on_train_start", "on_train_epoch_start", "on_validation_end", "on_train_end", "on_fit_end"):
            setattr(self, name, lambda *_, name=name: self.called.append(name))


def test_a_fit_that_stops_before_training(tmp_path):
    """The solution stays in the network, hooks of the end are called, no epoch is counted, no checkpoint written."""
    solve = ConvexReconstruction(
        witnesses="gaussian_standard", apply="replace", scale=1.0, every_n_epochs=0, final_solve=False
    )
    hooks = Hooks()
    net, fit = trained([solve, StopBeforeTraining(), hooks], default_root_dir=tmp_path, enable_checkpointing=True)
    assert hooks.called == ["on_train_start", "on_train_end", "on_fit_end"]
    assert (fit.current_epoch, fit.global_step, len(solve.reports)) == (0, 0, 1)
    assert not list(tmp_path.rglob("*.ckpt"))
    (metrics,) = fit.validate(net, datamodule=DigitsDataModule(), verbose=False)
    assert metrics["val_loss"] == pytest.approx(solve.reports[0].held_out_loss_after, rel=1e-4)
    assert net.training  # the mode of a fit
    fit.save_checkpoint(tmp_path / "solved.ckpt")
    twin = LitSNN.load_from_checkpoint(tmp_path / "solved.ckpt")
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


def test_weights_are_drawn_anew_by_the_runs_seed():
    nets = {}
    for seed in (0, 0, 1):
        net = LitSNN(hidden=[32])
        with torch.no_grad():
            for p in net.parameters():
                p.fill_(7.0)
        pl.seed_everything(seed, verbose=False)
        FreshWeights().on_train_start(None, net)
        nets.setdefault(seed, []).append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(*nets[0])
    assert not torch.equal(nets[0][0], nets[1][0])
    assert float(nets[0][0].abs().max()) < 1


@pytest.mark.parametrize("kind", ["gaussian_standard", "gaussian_normalized", "gaussian_orthogonal"])
def test_random_witnesses_are_those_of_their_kind(kind):
    net, _ = trained([FreshWeights(kind), StopBeforeTraining()])
    weight = net.layers[0].weight
    if kind == "gaussian_standard":
        assert 0.85 < float(weight.std()) < 1.15
    else:
        assert torch.allclose(weight.norm(dim=1), torch.ones(32), atol=1e-5)
    if kind == "gaussian_orthogonal":
        assert torch.allclose(weight[:8] @ weight[:8].T, torch.eye(8), atol=1e-5)
    assert not net.layers[0].bias.any()
    readout = LitSNN(hidden=[32]).readout.weight
    assert float(net.readout.weight.abs().max()) <= float(readout.abs().max()) * 1.2  # its constructor's


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, pl_module):
        self.seen.append(float(trainer.callback_metrics["val_loss"]))


@pytest.mark.parametrize(("mode", "best"), [("min", min), ("max", max)])
def test_the_weights_of_the_best_validation_are_left(mode, best):
    """Losses fall here: the highest is that of the first epoch."""
    losses = Losses()
    net, fit = trained([BestWeights("val_loss", mode), losses])
    assert losses.seen[0] == max(losses.seen) > losses.seen[-1]
    (metrics,) = fit.validate(net, datamodule=DigitsDataModule(), verbose=False)
    assert metrics["val_loss"] == pytest.approx(best(losses.seen[:3]), rel=1e-5)


def test_a_metric_that_is_no_number_is_never_the_best():
    best = BestWeights("val_loss", "min")
    net = nn.Linear(1, 1)
    run = SimpleNamespace(sanity_checking=False, state=SimpleNamespace(fn=TrainerFn.FITTING))
    for value in (float("nan"), 2.0, float("nan")):
        run.callback_metrics = {"val_loss": torch.tensor(value)}
        nn.init.constant_(net.weight, value)
        best.on_validation_end(run, net)
    best.on_train_end(run, net)
    assert float(net.weight) == 2.0


def test_a_metric_that_is_not_there_is_told():
    with pytest.raises(MisconfigurationException, match=r"no metric 'val_los'. Expected one of \['train_loss'"):
        trained([BestWeights("val_los")])


def test_a_reservoir_is_there_before_the_solve_and_stays():
    data = XORDataModule(steps=5, sizes=(200, 120, 120))
    tuned = TunedReservoir()
    solve = ConvexReconstruction(
        loss="squared", witnesses="keep", l1_ratio=0.0, apply="replace", every_n_epochs=0, final_solve=False
    )
    net = ParallelSNN(width=12, last_width=24, depth=3)
    net, _ = trained([tuned, solve, StopBeforeTraining()], net, data)
    assert abs(tuned.reservoir.ratio - 1) < 0.2
    assert solve.reports[0].accepted
    assert float(net.branches[0][1].tau) == pytest.approx(1 / (1 - tuned.reservoir.leak), rel=1e-5)
    assert float(net.branches[1][3].v_threshold) == tuned.reservoir.threshold
    norms = net.branches[0][0].weight.norm(dim=1)
    assert torch.allclose(norms, torch.full_like(norms, tuned.reservoir.scale), atol=1e-4)


def cell_folder(tmp_path, cell):
    folder = tmp_path / cell.id
    folder.mkdir()
    (folder / "cell.json").write_text(json.dumps(cell.record()))
    for stage, config in enumerate(cell.configs):
        (folder / config_name(stage)).write_text(json.dumps(config))
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", sorted(presets("methods")))
def test_every_method_runs(tmp_path, method, monkeypatch):
    monkeypatch.setattr("os.dup2", lambda *_: None)  # pytest's own files stay open
    overrides = {"preset": method} | ({"trainer.max_epochs": 3} if method == "sg-full-batch" else {})
    sweep = Sweep({"base": BASE, "tasks": {"xor": {"preset": "xor-t6-l5", **SMALL}}, "methods": {method: overrides}})
    (cell,) = sweep.cells()
    folder = cell_folder(tmp_path, cell)
    assert run_cell(folder), (folder / "state.json").read_text()
    result = json.loads((folder / "result.json").read_text())
    assert 0.3 < result["metrics"]["test_accuracy"] <= 1
    reports = json.loads((folder / "reports.json").read_text())
    paper = method.startswith(("cvx", "sg-cvx", "lsm", "r-cvx", "five"))
    assert bool(reports) == (paper or method in ("hybrid", "priced"))
    if paper:
        assert all(report["gap"] <= 1e-6 * max(1.0, report["primal"]) for report in reports)
        assert all(report["l1_ratio"] == (0 if "lsm" in method else 1) for report in reports)
    trains = {"five-stage": 3, "sg-sg": 2, "sg-full-batch": 3}
    untrained = method.startswith(("cvx", "lsm", "r-cvx")) and method != "cvx-sg"
    assert result["epochs"] == trains.get(method, 0 if untrained else 1)


def test_the_analog_reservoir_reads_voltages():
    sweep = Sweep({"base": BASE, "tasks": ["xor-t6-l5"], "methods": ["lsm", "lsm-analog", "r-cvx-analog"]})
    reductions = [cell.configs[0]["model"]["init_args"]["reduction"] for cell in sweep.cells()]
    assert reductions == ["membrane", "voltage", "voltage"]


def test_a_reservoir_that_is_silent_is_refused():
    with pytest.raises(MisconfigurationException, match="no spikes in the last layer"):
        trained([TunedReservoir(thresholds=[1e6])])
