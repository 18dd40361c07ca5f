import warnings

import pytest
import torch

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
