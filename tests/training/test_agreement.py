import warnings

import pytest

from lightning_cvxsnn.training.agreement import warn_unless_same_loss


@pytest.mark.parametrize(
    ("ours", "theirs", "loss"),
    [(0.7, 0.7, "cross_entropy"), (0.7, 0.704, "hinge"), (0.9, 0.6, "squared"), (1e-9, 3e-5, "cross_entropy")],
)
def test_losses_that_agree(ours, theirs, loss):
    """To one per cent; torch's ``mse_loss`` of three outputs is 2/3 of ours; what is next to nothing is alike."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unless_same_loss(ours, theirs, loss=loss, num_outputs=3)


@pytest.mark.parametrize(
    ("ours", "theirs", "loss"),
    [(0.7, 0.72, "cross_entropy"), (0.9, 0.6, "hinge"), (0.02, 0.03, "cross_entropy"), (0.0, 0.01, "squared")],
)
def test_losses_that_do_not_agree(ours, theirs, loss):
    with pytest.warns(UserWarning, match=f"solves loss='{loss}'"):
        warn_unless_same_loss(ours, theirs, loss=loss, num_outputs=3)
