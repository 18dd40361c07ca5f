import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_cvxsnn.network import TimeReduction
from lightning_cvxsnn.network.targets import row_targets, row_weights

MEAN = TimeReduction("mean", "steps", 4)
ALL = TimeReduction("all", "steps", 4)
ALL_BATCH_FIRST = TimeReduction("all", "steps", 4, batch_first=True)
LABELS = torch.tensor([0, 2, 1])


def targets(y, reduction=MEAN, loss="cross_entropy", num_outputs=3):
    return row_targets(y, reduction, loss=loss, num_outputs=num_outputs)


@pytest.mark.parametrize("y", [LABELS, LABELS.float(), LABELS[:, None], LABELS.to(torch.uint8)])
def test_class_indices(y):
    assert torch.equal(targets(y), LABELS)
    assert targets(y).dtype == torch.int64


def test_binary_targets_of_a_bce_network():
    assert torch.equal(targets(torch.tensor([[1.0], [0.0]]), num_outputs=1), torch.tensor([1, 0]))


def test_squared_takes_values_or_class_indices():
    values = torch.randn(3, 2)
    assert torch.equal(targets(values, loss="squared", num_outputs=2), values.double())
    assert torch.equal(targets(values[:, 0], loss="squared", num_outputs=1), values[:, :1].double())
    assert torch.equal(targets(LABELS, loss="squared"), torch.eye(3).double()[LABELS])


def test_cross_entropy_takes_probabilities():
    soft = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    assert torch.equal(targets(soft), soft.double())
    steps = torch.stack([soft, soft.flip(0)])  # [T, N, C]
    assert torch.equal(targets(steps, TimeReduction("all", "steps", 2)), steps.transpose(0, 1).flatten(0, 1).double())


def test_per_step_targets_follow_the_rows_of_the_dictionary():
    y = torch.arange(12).reshape(4, 3) % 3  # [T, N]
    assert torch.equal(targets(y, ALL), y.T.reshape(-1))
    assert torch.equal(targets(y.T, ALL_BATCH_FIRST), y.T.reshape(-1))


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (torch.tensor([0, 3]), {}, "range from 0 to 3 and the readout has 3"),
        (torch.tensor([-1, 0]), {}, "range from -1 to 0"),
        (torch.tensor([0, 2]), {"num_outputs": 1}, "class indices from 0 to 1"),
        (torch.tensor([0.5, 1.0]), {}, "hold fractions such as 0.5"),
        (torch.eye(3).long(), {}, "one class index per row"),
        (torch.eye(2), {}, "one class index per row"),
        (
            torch.ones(2, 3),
            {},
            "a row of sum 3 .* sum to 1. Other values are for loss='squared'; several labels per row are not",
        ),
        (LABELS, {"reduction": ALL}, "one output per time step"),
        (torch.randn(3, 2), {"loss": "squared"}, r"2 value\(s\) per row and the readout 3"),
        (torch.tensor([0, 5]), {"loss": "squared"}, "range from 0 to 5"),
    ],
)
def test_targets_that_do_not_fit(y, options, message):
    with pytest.raises(MisconfigurationException, match=message):
        targets(y, **options)


def test_weights():
    assert torch.equal(row_weights(None, 3, MEAN), torch.ones(3).double())
    assert torch.equal(row_weights(torch.tensor([1.0, 2.0]), 8, ALL), torch.tensor([1.0] * 4 + [2.0] * 4).double())
    per_step = torch.arange(8.0).reshape(4, 2)
    assert torch.equal(row_weights(per_step, 8, ALL), per_step.T.reshape(-1).double())


@pytest.mark.parametrize("weight", [torch.ones(2), torch.tensor([1.0, -1.0, 1.0])])
def test_weights_that_do_not_fit(weight):
    with pytest.raises(MisconfigurationException, match="one non-negative weight per sample"):
        row_weights(weight, 3, MEAN)
