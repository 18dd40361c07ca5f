"""The Mackey-Glass series and the network with real targets."""

import pytest
import torch
from networks import trainer

from lightning_cvxsnn import ConvexReconstruction, MackeyGlassDataModule, RegressionSNN
from lightning_cvxsnn.tasks.mackey_glass import series


def test_the_series_solves_the_equation():
    """Central differences of the series against the right-hand side, to the error of a step of 1."""
    v = series(400, torch.Generator().manual_seed(0))
    slope = (v[:, 2:] - v[:, :-2]) / 2
    now, late = v[:, 1:-1], v[:, :-18]
    right = 0.2 * late / (1 + late**10) - 0.1 * now[:, 16:]
    error = slope[:, 16:] - right
    assert error.square().mean().sqrt() < 0.1 * right.square().mean().sqrt()
    assert 0.2 < v.min() < v.max() < 1.5
    assert v.std(1).min() > 0.15  # no trajectory has come to rest


def test_windows_and_targets_are_of_one_trajectory():
    data = MackeyGlassDataModule(window=7, ahead=3, sizes=(250, 100, 60), seed=1)
    data.setup("fit")
    x, y = data.train.tensors
    assert x.shape == (250, 7, 1)
    assert y.shape == (250, 1)
    assert abs(float(x.mean())) < 0.3
    assert 0.7 < float(x.std()) < 1.3
    generator = torch.Generator().manual_seed(1)
    whole = ((series(3 * 10, generator) - 0.927) / 0.227).float().reshape(-1, 10)
    joined = torch.cat([x[..., 0], torch.full((250, 2), torch.nan), y], 1)
    for row in joined[:20]:
        assert bool(((whole - row).abs().nan_to_num().sum(1) == 0).any())
    assert not torch.equal(data.val.tensors[0][:60], data.test.tensors[0])


def test_the_error_is_that_of_numpy_and_the_callback_lowers_it():
    data = MackeyGlassDataModule(sizes=(400, 150, 100))
    net = RegressionSNN(hidden=[64])
    callback = ConvexReconstruction(loss="squared", l1_ratio=0.0)
    run = trainer(callback, max_epochs=2, num_sanity_val_steps=0)
    run.fit(net, data)
    assert callback.reports[-1].accepted
    assert "val_nrmse" in run.callback_metrics
    assert "val_accuracy" not in run.callback_metrics
    (metrics,) = run.test(net, datamodule=data, verbose=False)
    y = data.test.tensors[1]
    answers = torch.cat(run.predict(net, datamodule=data))
    expected = (answers - y).square().mean().sqrt() / y.std(unbiased=False)
    assert metrics == {"test_nrmse": pytest.approx(float(expected), rel=1e-2)}
    assert metrics["test_nrmse"] < 0.8


def test_hyperparameters_rebuild_it(tmp_path):
    net = RegressionSNN(in_features=2, hidden=[8], targets=3)
    run = trainer(max_epochs=1)
    run.strategy.connect(net)
    run.save_checkpoint(tmp_path / "net.ckpt")
    twin = RegressionSNN.load_from_checkpoint(tmp_path / "net.ckpt")
    x = torch.rand(4, 5, 2)
    assert torch.equal(net(x), twin(x))
    assert twin(x).shape == (4, 3)
