"""What the callback refuses, before anything is written."""

import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import Net, assert_same_state, fitted, rows, state, trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import ConvexReconstruction


def test_two_callbacks_need_two_names():
    with pytest.raises(MisconfigurationException, match="each to name its own readout"):
        fitted([ConvexReconstruction(), ConvexReconstruction(loss="hinge")])
    assert ConvexReconstruction(readout="a").state_key != ConvexReconstruction(readout="b").state_key
    assert ConvexReconstruction(loss="hinge").state_key != ConvexReconstruction().state_key


def test_two_named_callbacks_serve_two_readouts():
    class TwoHeads(Net):
        def __init__(self):
            super().__init__()
            self.other = torch.nn.Linear(24, 3)

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + self.other.weight.square().sum()

    callback = ConvexReconstruction(readout="readout", beta=0.02)
    fitted(callback, TwoHeads(), max_epochs=1)
    assert callback.reports[0].accepted


def by_other_means():
    """A strategy of two processes that is not DDP."""
    strategy = SingleDeviceStrategy("cpu")
    strategy.world_size = 2
    return strategy


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (by_other_means(), "under DDP only; found 2 of them under SingleDeviceStrategy"),
        (FSDPStrategy(), "does not support FSDPStrategy, which shards parameters"),
        (DeepSpeedStrategy.__new__(DeepSpeedStrategy), "does not support DeepSpeedStrategy, which shards parameters"),
        (ModelParallelStrategy(), "does not support ModelParallelStrategy, which shards parameters"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_strategies_that_are_refused_in_setup(strategy, message):
    callback = ConvexReconstruction()
    run = trainer(callback)
    run._accelerator_connector.strategy = strategy
    with pytest.raises(MisconfigurationException, match=message):
        callback.setup(run, Net(), "fit")


def test_nothing_is_written_when_a_network_is_refused():
    net = Net(tail=torch.nn.Softmax(-1))
    before = state(net)
    with pytest.raises(MisconfigurationException, match="no linear function"):
        fitted(ConvexReconstruction(), net)
    assert_same_state(net, before)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((rows()[0], torch.full((240,), 3)), MisconfigurationException, "range from 3 to 3"),
        ((rows()[0] * float("nan"), rows()[1]), ValueError, "NaN"),
        ((rows()[0], rows()[1], rows()[1]), MisconfigurationException, r"a list of \['Tensor', 'Tensor', 'Tensor'\]"),
    ],
)
def test_bad_data(data, error, message):
    net = Net()
    before = state(net)
    with pytest.raises(error, match=message):
        fitted(ConvexReconstruction(), net, DataLoader(TensorDataset(*data), batch_size=16))
    assert_same_state(net, before)
