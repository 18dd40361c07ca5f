"""The wall between solvers and certificate, and what the certificate's own arithmetic promises."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programmes import LOSSES, make
from torch import Tensor

import lightning_cvxsnn.convex.losses as losses
from lightning_cvxsnn.convex import certificate, mean_loss, rho_max, solve
from lightning_cvxsnn.convex.losses import Loss, LossFunction, LossProof, SmoothLoss, loss_named, proof_named

FILES = [*Path(losses.__file__).parent.glob("*.py"), Path(losses.__file__).parents[1] / "penalties.py"]


def _classes() -> dict[str, ast.ClassDef]:
    trees = [ast.parse(file.read_text()) for file in FILES]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def _names(node: ast.AST) -> set[str]:
    """Every name that is used under a node, docstrings and annotations not counted."""
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


def _imported_or_defined() -> set[str]:
    """Functions, classes and constants of the package that the files of the losses define or import."""
    found: set[str] = set()
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_cvxsnn"):
                found |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.Assign):
                found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def test_proofs_use_nothing_of_the_solvers() -> None:
    """A proof class may name torch, the standard library and other proof classes; a solver's class no proof class."""
    classes = _classes()
    proofs = {name for name in classes if name.endswith("Proof")}
    assert len(proofs) == len(LOSSES) + 7  # one each, two bases, four of rays, that of the penalty
    ours = _imported_or_defined()
    assert {"mean_target", "soft_threshold", "CrossEntropy", "_normalised", "_TINY"} <= ours
    for name, node in classes.items():
        if name in proofs:
            assert _names(node) & ours <= proofs, name
        else:
            assert not _names(node) & proofs, name
    certify = (Path(losses.__file__).parents[1] / "certify.py").read_text()
    imported = [line for line in certify.splitlines() if "import" in line and "lightning_cvxsnn" in line]
    allowed = "import LossProof, RayProof", "import Matrix", "import ElasticNetProof"
    assert all(line.endswith(allowed) for line in imported), imported


def test_one_list_of_losses() -> None:
    assert list(losses.LOSSES) == list(get_args(Loss)) == LOSSES
    for name, (loss, proof) in losses.LOSSES.items():
        assert isinstance(loss, LossFunction)
        assert isinstance(proof, LossProof)
        assert loss.name == name
        assert (loss_named(name), proof_named(name)) == (loss, proof)


def test_unknown_names_are_refused() -> None:
    z, y = torch.zeros(4, 1), torch.tensor([0, 1, 0, 1])
    options = {"loss": "poisson", "fit_intercept": True}
    for call in (
        lambda: loss_named("poisson"),
        lambda: proof_named("poisson"),
        lambda: mean_loss(z, y, loss="poisson"),
        lambda: solve(z, y, rho=1.0, **options),
        lambda: rho_max(z, y, **options),
        lambda: certificate(z, y, torch.zeros(1, 1), rho=1.0, **options),
    ):
        with pytest.raises(ValueError, match="loss is 'poisson'; expected one of 'cross_entropy', 'hinge'"):
            call()


def _rows(loss: str, outputs: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, encoded targets and weights of 12 rows, some of weight 0."""
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(12, outputs, generator=generator, dtype=torch.float64)
    targets = make(seed, loss, rows=12, outputs=outputs)["targets"]
    weight = torch.rand(12, generator=generator, dtype=torch.float64) * (torch.arange(12) % 4 > 0)
    return z, loss_named(loss).encode(targets, outputs), weight


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_both_sides_agree_on_the_loss(loss: str, outputs: int) -> None:
    z, encoded, weight = _rows(loss, outputs, 0)
    function, proof, scale = loss_named(loss), proof_named(loss), weight[:, None] / 12
    torch.testing.assert_close(proof.values(z, encoded), function.values(z, encoded))
    torch.testing.assert_close(proof.residuals(z, encoded, scale), -scale * function.gradient(z, encoded))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(LOSSES), st.sampled_from([1, 3]), st.integers(0, 1000), st.booleans(),
    st.sampled_from([1e-6, 0.1, 1.0, 50.0]),
)  # fmt: skip
def test_dual_values_bound_every_primal_value(loss: str, outputs: int, seed: int, free: bool, size: float) -> None:
    """Fenchel's inequality for all outputs ``z``: ``D(U) <= (1/n) sum s_i loss(z_i) + <U, z>``."""
    z, encoded, weight = _rows(loss, outputs, seed)
    proof, scale = proof_named(loss), weight[:, None] / 12
    noise = size * torch.randn(12, outputs, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    limit = torch.rand(outputs, generator=torch.Generator().manual_seed(seed + 2), dtype=torch.float64) * 2
    for point in (noise, proof.residuals(z, encoded, scale), torch.zeros_like(z)):
        repaired = proof.repair(point, encoded, scale, free)
        assert bool((repaired[weight == 0] == 0).all())
        if free:
            assert float(repaired.sum(0).abs().max()) <= 1e-12 * (1 + float(repaired.abs().sum()))
        ray = proof.ray(repaired, encoded, weight)
        factor = torch.minimum(ray.best, limit[: len(ray.best)])
        scaled, value = factor * repaired, ray.value(factor)
        for outputs_ in (z, 10 * z, torch.zeros_like(z), 2 * encoded):
            primal = float(weight @ loss_named(loss).values(outputs_, encoded)) / 12
            assert value <= primal + float((scaled * outputs_).sum()) + 1e-9 * (1 + abs(primal) + abs(value))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_rays_know_their_slopes(loss: str, outputs: int) -> None:
    z, encoded, weight = _rows(loss, outputs, 5)
    proof, scale = proof_named(loss), weight[:, None] / 12
    ray = proof.ray(proof.repair(proof.residuals(z, encoded, scale), encoded, scale, False), encoded, weight)
    at, step = 0.6 * ray.best, 1e-6
    slope, curvature = ray.slopes(at)
    for c in range(len(at)):
        moved = step * (torch.arange(len(at)) == c)
        torch.testing.assert_close(float(slope[c]), (ray.value(at + moved) - ray.value(at - moved)) / (2 * step))
        bend = (ray.slopes(at - moved)[0][c] - ray.slopes(at + moved)[0][c]) / (2 * step)
        torch.testing.assert_close(curvature[c], bend, rtol=1e-5, atol=1e-6)
    if loss.startswith("squared"):  # the others' end at the edge of their domain
        assert ray.value(ray.best) >= max(ray.value(0.99 * ray.best), ray.value(torch.zeros_like(at)))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("loss", [name for name in LOSSES if isinstance(loss_named(name), SmoothLoss)])
def test_curvature_is_the_derivative_of_the_gradient(loss: str, outputs: int) -> None:
    z, encoded, _ = _rows(loss, outputs, 3)
    function = loss_named(loss)
    assert isinstance(function, SmoothLoss)
    for c in range(outputs):
        own, target = function.one_output(z, c), encoded[:, c, None]
        ahead, behind = (function.gradient(own + step, target) for step in (1e-6, -1e-6))
        torch.testing.assert_close(function.curvature(own, target), (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-6)
        shift = torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None]  # of one output, given the others
        moved = z.clone()
        moved[:, c] += shift[:, 0]
        change = function.values(moved, encoded) - function.values(z, encoded)
        torch.testing.assert_close(change, function.values(own + shift, target) - function.values(own, target))


def test_what_the_rest_of_the_package_asks_of_a_loss() -> None:
    assert [name for name in LOSSES if not loss_named(name).decides] == ["squared"]
    assert [name for name in LOSSES if loss_named(name).takes_probabilities] == ["cross_entropy"]
    assert loss_named("squared").trained_factors(10) == (1.0, 0.2)
    assert loss_named("squared_hinge").trained_factors(10) == (1.0,)


def test_squared_hinge_by_hand() -> None:
    outputs = torch.tensor([[0.5, -2.0, 0.0], [3.0, 1.0, -1.0]])
    # row 0, label 1: 1.5^2 + 3^2 + 1; row 1, label 0: 0 + 2^2 + 0
    assert mean_loss(outputs, torch.tensor([1, 0]), loss="squared_hinge") == pytest.approx((12.25 + 4) / 2)
    weight = torch.tensor([0.0, 3.0])
    found = mean_loss(outputs, torch.tensor([1, 0]), loss="squared_hinge", sample_weight=weight)
    assert found == pytest.approx(6.0)


def test_squared_hinge_dual_by_hand() -> None:
    """``alpha >= 0``, value ``sum alpha - n alpha^2 / (4 s)``, at its best multiple."""
    proof = proof_named("squared_hinge")
    sign, weight = torch.tensor([[1.0], [-1.0]]).double(), torch.tensor([1.0, 2.0]).double()
    alpha = torch.tensor([[0.3], [0.1]]).double()
    linear, curvature = 0.4, 2 * 0.3**2 / 4 + 2 * 0.1**2 / 8
    best = linear / (2 * curvature)
    for limit in (0.5, best, 1e9):
        factor = min(limit, best)
        ray = proof.ray(sign * alpha, sign, weight)
        assert float(ray.best) == pytest.approx(best)
        assert ray.value(torch.tensor([factor]).double()) == pytest.approx(factor * linear - factor**2 * curvature)
    repaired = proof.repair(torch.tensor([[-0.3], [0.2]]).double(), sign, weight[:, None] / 2, False)
    assert torch.equal(repaired, torch.zeros(2, 1).double())
