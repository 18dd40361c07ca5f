import warnings

import pytest
import torch
from networks import Net, loader, trainer
from torch.nn import functional as F

from lightning_cvxsnn import ConvexReconstruction
from lightning_cvxsnn.training.agreement import BatchLoss, warn_unless_same_loss

SLOPE = torch.tensor([[1.0, -2.0], [0.0, 3.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("ours", "theirs", "loss"),
    [(0.7, 0.7, "cross_entropy"), (0.7, 0.704, "hinge"), (0.9, 0.6, "squared"), (1e-9, 3e-5, "cross_entropy")],
)
def test_losses_that_agree(ours, theirs, loss):
    """To one per cent; torch's ``mse_loss`` of three outputs is 2/3 of ours; what is next to nothing is alike."""
    factor = 2 / 3 if loss == "squared" else 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for slope in (None, SLOPE):
            there = BatchLoss(theirs, None if slope is None else 1.02 * factor * slope)
            assert warn_unless_same_loss(BatchLoss(ours, slope), there, loss=loss, num_outputs=3)


@pytest.mark.parametrize(
    ("ours", "theirs", "loss"),
    [(0.7, 0.72, "cross_entropy"), (0.9, 0.6, "hinge"), (0.02, 0.03, "cross_entropy"), (0.0, 0.01, "squared")],
)
def test_losses_that_do_not_agree(ours, theirs, loss):
    with pytest.warns(UserWarning, match=f"solves loss='{loss}', which is {ours:.4f}"):
        warn_unless_same_loss(BatchLoss(ours, SLOPE), BatchLoss(theirs, SLOPE), loss=loss, num_outputs=3)


@pytest.mark.parametrize("change", [0.9, 1.1, torch.tensor([[1.0], [0.5]])])
def test_equal_losses_with_other_slopes(change):
    """As of label smoothing and class weights where answers are near zero."""
    with pytest.warns(UserWarning, match=r"whose slope in the readout differs by \d+ %.*`convex_batch"):
        warn_unless_same_loss(BatchLoss(2.3, SLOPE), BatchLoss(2.3, change * SLOPE), loss="hinge", num_outputs=2)


def test_slopes_that_are_next_to_nothing_are_not_compared():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unless_same_loss(BatchLoss(0, 1e-8 * SLOPE), BatchLoss(0, -1e-8 * SLOPE), loss="hinge", num_outputs=2)


# -- in a fit -------------------------------------------------------------------------------------------------------


def fit(callback, net, **options):
    torch.manual_seed(1)
    trainer(callback, max_epochs=1, **options).fit(net, loader(shuffle=True))


@pytest.mark.parametrize(
    ("loss", "train"),
    [
        ("cross_entropy", lambda z, y: F.cross_entropy(z, y)),
        ("squared", lambda z, y: F.mse_loss(z, F.one_hot(y, 3).float())),
        ("squared", lambda z, y: 0.5 * (z - F.one_hot(y, 3)).square().sum(1).mean()),
        ("hinge", lambda z, y: (1 - (2 * F.one_hot(y, 3) - 1) * z).clamp(min=0).sum(1).mean()),
        ("squared_hinge", lambda z, y: (1 - (2 * F.one_hot(y, 3) - 1) * z).clamp(min=0).square().sum(1).mean()),
    ],
)
def test_the_same_loss_raises_no_warning(loss, train):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(ConvexReconstruction(loss=loss, beta=0.05), trains(train))
    assert not [w for w in caught if "training_step" in str(w.message)]


@pytest.mark.parametrize(
    ("loss", "train"),
    [
        ("cross_entropy", lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2)),
        ("cross_entropy", lambda z, y: F.cross_entropy(z, y, weight=torch.tensor([1.0, 5.0, 0.1]))),
        ("cross_entropy", lambda z, y: F.mse_loss(z, F.one_hot(y, 3).float())),
        ("hinge", lambda z, y: F.multi_margin_loss(z, y)),
    ],
)
def test_another_loss_is_warned_about(loss, train):
    with pytest.warns(UserWarning, match=rf"solves loss='{loss}'.*`training_step` returned"):
        fit(ConvexReconstruction(loss=loss, beta=0.05, witnesses="keep"), trains(train))


@pytest.mark.parametrize(
    "train",
    [
        lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
        lambda z, y: F.cross_entropy(z, y, weight=torch.tensor([1.0, 5.0, 0.1])),
    ],
)
def test_another_loss_is_told_by_its_slope_where_answers_are_near_zero(train):
    net = trains(train)
    with torch.no_grad():
        for parameter in net.readout.parameters():
            parameter.mul_(1e-3)
    callback = ConvexReconstruction(beta=0.05, witnesses="keep", apply="shadow")
    with pytest.warns(UserWarning, match="whose slope in the readout differs by"):
        fit(callback, net)


def test_the_comparison_sees_dropout_and_accumulation_as_training_does():
    net = trains(F.cross_entropy)
    net.hidden.insert(1, torch.nn.Dropout(0.5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(ConvexReconstruction(beta=0.05), net, accumulate_grad_batches=3)
    assert not [w for w in caught if "training_step" in str(w.message)]


def trains(function):
    class Own(Net):
        def training_step(self, batch, batch_idx):
            return function(self(batch[0]), batch[1])

    torch.manual_seed(0)
    return Own()
