"""Packed dictionaries: what the solvers do with them block by block is what they do with the dense matrix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programmes import LOSSES, make, residual_certificate_inputs, scale_of

from lightning_cvxsnn.convex import PackedDictionary, certificate, path, rho_max, solve
from lightning_cvxsnn.convex.inputs import Data, check_dictionary
from lightning_cvxsnn.convex.losses import loss_named
from lightning_cvxsnn.convex.matrix import Blocks, Entries, Matrix
from lightning_cvxsnn.convex.presolve import reduce
from lightning_cvxsnn.patterns import SpikeDictionary

KINDS = ["uint8", "uint16", "bits", "bool", "float32", "int64"]


#: Nothing is small enough to be converted at once, and every loop over blocks runs several times.
SMALL = Blocks(whole=0, product=30, gathered=40, keys=50)


def _packed(values: torch.Tensor, kind: str, scale: float) -> tuple[torch.Tensor | SpikeDictionary, torch.Tensor]:
    """A dictionary of the counts ``values`` stored as ``kind``, and the float64 matrix that it stands for."""
    if kind in ("bits", "bool"):
        values = (values > 0).to(values)
    if kind in ("bool", "int64"):
        return values.to(getattr(torch, kind)), values.double()
    if kind == "bits":
        return SpikeDictionary.from_values(values, scale).packed(), values.double() * scale
    if kind == "float32":
        values = values / 8
    values = values.to(getattr(torch, kind))
    return SpikeDictionary(values, scale), values.double() * scale


MATRICES = st.tuples(
    st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 30), st.sampled_from(KINDS), st.sampled_from([1.0, 0.1])
)


def _matrices(case: tuple[int, int, int, str, float]) -> tuple[Matrix, torch.Tensor, torch.Generator]:
    seed, rows, columns, kind, scale = case
    values = make(seed, "squared", rows=rows, columns=columns, counts=200 if kind == "uint8" else 3)["dictionary"]
    if kind == "uint16":
        values = values * 300
    packed, dense = _packed(values, kind, scale)
    return check_dictionary(packed, SMALL), dense, torch.Generator().manual_seed(seed)


@settings(max_examples=150, deadline=None)
@given(MATRICES, st.booleans(), st.booleans())
def test_products_gathers_and_grams(case: tuple[int, int, int, str, float], ones: bool, sparse: bool) -> None:
    packed, dense, generator = _matrices(case)
    assert packed.packed
    assert isinstance(packed.source, PackedDictionary)
    if ones:
        packed, dense = packed.with_ones(), torch.cat([dense, torch.ones(len(dense), 1).double()], 1)
    rows, columns = dense.shape
    assert packed.shape == dense.shape
    w = torch.randn(columns, 3, generator=generator, dtype=torch.float64)
    if sparse:
        w[1:] = 0
    u = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    weight = torch.rand(rows, generator=generator, dtype=torch.float64)
    index = torch.randint(columns, (2 * columns,), generator=generator)
    mask = weight > 0.5
    for found, expected in (
        (packed @ w, dense @ w),
        (packed @ w[:, 0], dense @ w[:, 0]),
        (packed.T @ u, dense.T @ u),
        (packed.T @ u[:, 0], dense.T @ u[:, 0]),
        (packed[:, index], dense[:, index]),
        (torch.cat([block for _, block in packed.gathered(index)]), dense[:, index]),
        (packed.model(index, weight, weight)[0], dense[:, index].T @ (weight[:, None] * dense[:, index])),
        (packed.squared_norms(weight), weight @ dense.square()),
        (packed[mask].to_dense(), dense[mask]),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * max(1.0, float(expected.abs().sum())))
        assert found.dtype == torch.float64
    if not ones:
        assert torch.equal(packed.columns(index).to_dense(), packed[:, index])


@settings(max_examples=150, deadline=None)
@given(MATRICES, st.booleans())
def test_columns_merge_as_in_the_dense_matrix(case: tuple[int, int, int, str, float], fit_intercept: bool) -> None:
    packed, dense, generator = _matrices(case)
    weight = torch.randint(0, 4, (len(dense),), generator=generator).double()  # a quarter of the rows carry none
    encoded = torch.randn(len(dense), 2, generator=generator, dtype=torch.float64)
    ours = reduce(Data(packed, encoded, weight), loss_named("squared"), fit_intercept)
    counts = packed.source.block(slice(0, len(dense))).double()
    plain = reduce(Data(Matrix(Entries(counts)), encoded, weight), loss_named("squared"), fit_intercept)
    assert torch.equal(ours.rows, weight.nonzero()[:, 0])
    for name in ("rows", "columns", "owner", "sign"):
        assert torch.equal(getattr(ours, name), getattr(plain, name)), name
    kept = dense[ours.rows]
    torch.testing.assert_close(ours.programme.matrix.to_dense(), kept[:, ours.columns], rtol=1e-14, atol=0)
    if len(kept) == 0:
        return
    # what was merged is equal, what was not is not
    head = torch.where(ours.owner >= 0, ours.owner, 0)
    first = kept[:, ours.columns][:, head] if ours.columns.numel() else torch.zeros_like(kept)
    rebuilt = torch.where(ours.owner >= 0, ours.sign * first, 0.0) + ours.shift
    torch.testing.assert_close(rebuilt, kept, rtol=0, atol=1e-12 * float(kept.abs().max() + 1))
    canonical = (kept - kept[0] if fit_intercept else kept)[:, ours.columns].T
    for i, column in enumerate(canonical):
        assert float(column.abs().max()) > 1e-9
        others = canonical[i + 1 :]
        assert not bool(((others - column).abs().amax(1) < 1e-9).any() | ((others + column).abs().amax(1) < 1e-9).any())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from(LOSSES), st.integers(1, 3), st.booleans(), st.booleans(),
    st.sampled_from(KINDS), st.sampled_from([0.3, 0.03]),
)  # fmt: skip
def test_solves_agree(
    seed: int, loss: str, outputs: int, weighted: bool, fit_intercept: bool, kind: str, share: float
) -> None:
    problem = make(seed, loss, rows=25, columns=14, outputs=outputs, weighted=weighted, counts=4)
    packed, problem["dictionary"] = _packed(problem["dictionary"], kind, 0.25)
    rho = share * rho_max(**problem, fit_intercept=fit_intercept) + 1e-6
    options: dict[str, Any] = {"rho": rho, "fit_intercept": fit_intercept, "gap_tolerance": 1e-10}
    scale = scale_of(problem)
    dense = solve(**problem, **options)
    checked = check_dictionary(packed, SMALL)
    assert checked.packed
    solution = solve(**(problem | {"dictionary": checked}), **options)
    assert solution.converged
    assert solution.primal == pytest.approx(dense.primal, abs=1e-9 * scale)
    assert solution.dual == pytest.approx(dense.dual, abs=1e-9 * scale)
    proof = certificate(**residual_certificate_inputs(problem, solution), rho=rho, fit_intercept=fit_intercept)
    assert proof.gap == pytest.approx(solution.gap, abs=1e-12 * scale)
    again = solve(**(problem | {"dictionary": checked}), **options)
    assert torch.equal(again.coef, solution.coef)


def test_path_and_reference_take_packed_dictionaries() -> None:
    problem = make(3, "cross_entropy", rows=40, columns=10)
    dense = problem.pop("dictionary")
    packed = check_dictionary(SpikeDictionary.from_values(dense), SMALL)
    held_out = torch.arange(40) % 4 == 0
    one, other = (path(d, **problem, fit_intercept=True, held_out=held_out, num_values=4) for d in (dense, packed))
    assert one.held_out_losses == pytest.approx(other.held_out_losses, abs=1e-6)
    reference = solve(packed, **problem, rho=0.02, fit_intercept=True, solver="cvxpy")
    assert reference.converged
    assert reference.primal == pytest.approx(solve(packed, **problem, rho=0.02, fit_intercept=True).primal, abs=1e-5)


def test_bad_entries_are_found_in_their_block() -> None:
    values = torch.zeros(40, 3)
    values[17, 2] = float("nan")
    values[30, 1] = float("inf")
    for bad in (values, SpikeDictionary(values)):
        with pytest.raises(ValueError, match="2 NaN or infinite entries, the first at row 17, column 2"):
            check_dictionary(bad, SMALL)
    with pytest.raises(ValueError, match="120 NaN or infinite entries, the first at row 0, column 0"):
        check_dictionary(SpikeDictionary(torch.ones(40, 3, dtype=torch.uint8), float("nan")), SMALL)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("options", [[], ["--loss", "squared", "--bits"]])
def test_memory_stays_that_of_the_packed_dictionary(options: list[str]) -> None:
    script = Path(__file__).parent / "memory.py"
    command = [sys.executable, str(script), "20000", "2048", "4", "--beta", "0.3", "--max-iterations", "2", *options]
    path_ = os.pathsep.join([str(script.parents[2]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": path_}, capture_output=True, text=True, check=True)
    result = json.loads(ran.stdout)
    assert result["nonzero"] > 0
    assert result["grown_mb"] < 150, result  # one dense float64 copy takes 312 MiB
