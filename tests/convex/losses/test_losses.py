"""Losses and targets against torch and by hand."""

from __future__ import annotations

import pytest
import torch
from programmes import LOSSES

from lightning_cvxsnn.convex import mean_loss
from lightning_cvxsnn.convex.losses import loss_named


def test_against_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(20, 4, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, 4, (20,), generator=generator)
    expected = torch.nn.functional.cross_entropy(outputs, labels)
    assert mean_loss(outputs, labels, loss="cross_entropy") == pytest.approx(float(expected), abs=1e-14)
    two = labels % 2
    expected = torch.nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], two.double())
    assert mean_loss(outputs[:, :1], two, loss="cross_entropy") == pytest.approx(float(expected), abs=1e-14)
    real = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    expected = torch.nn.functional.mse_loss(outputs, real) * 2  # C / 2 times
    assert mean_loss(outputs, real, loss="squared") == pytest.approx(float(expected), abs=1e-12)


def test_hinge_by_hand() -> None:
    outputs = torch.tensor([[0.5, -2.0, 0.0], [3.0, 1.0, -1.0]])
    # row 0, label 1: 1.5 + 3 + 1; row 1, label 0: 0 + 2 + 0
    assert mean_loss(outputs, torch.tensor([1, 0]), loss="hinge") == pytest.approx((5.5 + 2) / 2)
    weight = torch.tensor([0.0, 3.0])
    assert mean_loss(outputs, torch.tensor([1, 0]), loss="hinge", sample_weight=weight) == pytest.approx(3.0)
    assert mean_loss(outputs[:, :1], torch.tensor([1, 0]), loss="hinge") == pytest.approx((0.5 + 4) / 2)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("outputs", [1, 3])
def test_gradient_and_best_constant(loss: str, outputs: int) -> None:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(15, outputs, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, max(outputs, 2), (15,), generator=generator)
    targets = torch.randn(15, outputs, generator=generator, dtype=torch.float64) if loss == "squared" else labels
    function = loss_named(loss)
    encoded = function.encode(targets, outputs)
    (gradient,) = torch.autograd.grad(function.values(z, encoded).sum(), z)
    torch.testing.assert_close(function.gradient(z.detach(), encoded), gradient)
    weight = torch.rand(15, generator=generator, dtype=torch.float64)
    best = function.constant(encoded, weight)
    value = float(weight @ function.values(best.expand(15, -1), encoded))
    for _ in range(50):
        other = best + 0.3 * torch.randn(outputs, generator=generator, dtype=torch.float64)
        assert value <= float(weight @ function.values(other.expand(15, -1), encoded)) + 1e-12


def test_extreme_outputs_stay_finite() -> None:
    outputs = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    assert mean_loss(outputs, torch.tensor([0, 0]), loss="cross_entropy") == pytest.approx(1e4)
    assert mean_loss(outputs[:, :1], torch.tensor([1, 0]), loss="cross_entropy") == 0.0


def test_bad_input() -> None:
    outputs, labels = torch.zeros(3, 2), torch.tensor([0, 1, 1])
    for call, message in (
        (lambda: mean_loss(outputs[:2], labels, loss="hinge"), "targets has 3 rows and outputs has 2"),
        (lambda: mean_loss(outputs / 0, labels, loss="hinge"), "outputs holds NaN"),
        (lambda: mean_loss(outputs[0], labels, loss="hinge"), r"outputs has shape \(2,\)"),
        (lambda: mean_loss(outputs, labels + 1, loss="hinge"), "labels from 1 to 2; expected 0 to 1"),
        (lambda: mean_loss(outputs[:, :1], labels + 1, loss="hinge"), "expected 0 to 1 for num_outputs=1"),
        (lambda: mean_loss(outputs, labels, loss="squared"), "loss 'squared' expects floats"),
        (lambda: mean_loss(outputs, labels, loss="nll"), "loss is 'nll'"),
        (lambda: mean_loss(outputs, labels[:0], loss="hinge"), "targets is empty"),
        (lambda: mean_loss(outputs, labels, loss="hinge", sample_weight=-torch.ones(3)), "negative entry"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="targets is a list"):
        mean_loss(outputs, [0, 1, 1], loss="hinge")  # type: ignore[arg-type]
