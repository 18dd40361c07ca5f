"""The callback in fits on a CUDA device."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from networks import ConvNet, Net, images, loader, state
from spikingjelly.activation_based import layer, neuron
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import ConvexReconstruction, calibrate, reconstruct, spike_dictionary

no_gpu = None if torch.cuda.is_available() else "torch finds no CUDA device"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(no_gpu is not None, reason=no_gpu or "")]


@pytest.fixture(autouse=True)
def _repeatable(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def fit(net, *callbacks, data=None, max_epochs=3, **kwargs):
    arguments = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False} | kwargs
    run = pl.Trainer(
        accelerator="gpu", devices=1, max_epochs=max_epochs, callbacks=list(callbacks), enable_model_summary=False,
        **arguments,
    )  # fmt: skip
    torch.manual_seed(1)
    run.fit(net, data or loader(shuffle=True), loader(seed=1) if data is None else None)
    return run


def new_net(**arguments):
    torch.manual_seed(0)
    return Net(**arguments)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("witnesses", ["auto", "calibrated", "pool", "priced"])
def test_solves_are_certified_and_written(precision, witnesses):
    callback, net = ConvexReconstruction(witnesses=witnesses, max_overhead=None), new_net()
    fit(net, callback, precision=precision)
    assert callback.reports[0].accepted
    assert callback.reports[-1].reason.startswith("final solve")
    assert all(report.gap <= 2e-3 for report in callback.reports)  # what is only shown
    assert callback.reports[-1].gap <= 2e-6
    assert all(bool(p.isfinite().all()) for p in net.parameters())


def test_the_same_solves_as_on_the_cpu():
    here, there = ConvexReconstruction(beta=0.02, seed=1), ConvexReconstruction(beta=0.02, seed=1)
    options = {"max_epochs": 1, "data": loader()}
    fit(new_net(), there, **options)
    net = new_net()
    pl.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[here], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(net, loader())  # fmt: skip
    assert there.reports[0].primal == pytest.approx(here.reports[0].primal, rel=1e-2)  # spikes at a tie may differ


def test_a_convolutional_network_with_batch_norm():
    data = DataLoader(TensorDataset(*images(240)), batch_size=40)
    callback = ConvexReconstruction(max_overhead=None)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(False)  # adaptive pools and convolutions have no such backward pass
    fit(ConvNet(norm=True), callback, data=data)
    assert any(report.accepted for report in callback.reports)
    assert callback.reports[-1].gap <= 2e-3


@pytest.mark.parametrize("backend", ["cupy", "triton"])
def test_neurons_on_spikingjellys_own_kernels(backend):
    net = new_net()
    net.hidden[1].backend = backend
    torch.use_deterministic_algorithms(False)
    callback = ConvexReconstruction(max_overhead=None)
    fit(net, callback)
    assert callback.reports[0].accepted
    assert callback.reports[-1].gap <= 2e-6


def test_training_under_shadows_is_training_alone_bit_for_bit():
    alone, beside = new_net(), new_net()
    fit(alone)
    callback = ConvexReconstruction(warm_start=False, final_solve=False, apply="shadow", max_overhead=None)
    run = fit(beside, callback)
    callback._withdraw(run, beside)
    for name, value in state(alone).items():
        assert torch.equal(state(beside)[name].cpu(), value.cpu()), name


def test_a_dry_run_changes_nothing():
    alone, beside = new_net(), new_net()
    fit(alone)
    fit(beside, ConvexReconstruction(dry_run=True, max_overhead=None))
    for name, value in state(alone).items():
        assert torch.equal(state(beside)[name].cpu(), value.cpu()), name


def test_a_resumed_fit_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = new_net()
    saver = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    fit(whole, ConvexReconstruction(max_overhead=None), saver, max_epochs=4, enable_checkpointing=True, data=loader())
    again = new_net()
    run = pl.Trainer(
        accelerator="gpu", devices=1, max_epochs=4, callbacks=[ConvexReconstruction(max_overhead=None)], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    run.fit(again, loader(), ckpt_path=str(tmp_path / "epoch=1.ckpt"))
    for name, value in state(whole).items():
        assert torch.equal(state(again)[name].cpu(), value.cpu()), name


def test_without_a_trainer():
    net = new_net().cuda()
    moved = [(x.cuda(), y.cuda()) for x, y in loader()]
    report = reconstruct(net, moved)
    assert report.accepted
    assert net.readout.weight.is_cuda
    assert spike_dictionary(net, moved).shape == (240, 24)
    calibrate(copy.deepcopy(net), moved)


def test_single_step_neurons():
    net = new_net(step_mode="s")
    callback = ConvexReconstruction(max_overhead=None)
    fit(net, callback)
    assert callback.reports[0].accepted
    assert isinstance(net.hidden[1], neuron.LIFNode)
    assert isinstance(net.readout, layer.Linear)
