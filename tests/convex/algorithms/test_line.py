import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_cvxsnn.convex import solve
from lightning_cvxsnn.convex.algorithms.line import flat_length


def test_a_full_step_that_ends_flat_is_taken_as_it_is():
    assert flat_length(lambda length: length - 1, -1.0) == 1.0


@given(st.floats(0.05, 3.5))
def test_the_minimum_of_a_parabola_is_found_on_either_side_of_a_full_step(where):
    length = flat_length(lambda length: length - where, -where)
    assert abs(length - where) <= 0.2 * where + 1e-12


def test_a_wall_beyond_the_minimum_is_not_climbed():
    """The objective is flat, then steep: interpolation alone would creep."""
    length = flat_length(lambda length: math.exp(30 * (length - 0.5)) - 2, -2.0)
    assert length < 0.55


def test_what_falls_for_ever_ends():
    assert 1 < flat_length(lambda length: -1.0, -1.0) <= 4


def test_a_slope_of_rounding_error_is_no_division_by_zero():
    assert flat_length(lambda length: 1e-20, 1e-20) == 1.0
    assert flat_length(lambda length: 0.0, 0.0) == 1.0


def test_many_classes_that_a_full_step_overshoots_take_few_iterations():
    """Newton's full steps end far up the other side here; they were taken, since they descended a little."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 40
    means = torch.rand(40, 64, generator=generator)
    counts = torch.bernoulli(means[labels] * 0.6, generator=generator)
    solution = solve(counts, labels, loss="cross_entropy", rho=1e-5, l1_ratio=0.0, fit_intercept=True)
    assert solution.converged
    assert solution.iterations <= 9
