"""The guard: what a solution answers on rows that it was not fitted to, against the network as found."""

from dataclasses import dataclass

from lightning_cvxsnn.convex import Solution
from lightning_cvxsnn.network.programme import ROUGH, Problem


@dataclass(frozen=True)
class Judgement:
    """What the held-out rows say of a solution.

    Attributes:
        scale: Factor on the solution.
        before: Loss with the readout as found.
        after: Loss with the solution, scaled.
        accuracy_before: Share of the rows that are decided rightly with the readout as found; None where the outputs
            decide nothing.
        accuracy_after: The same with the solution, scaled.
        accepted: Whether the solution is better.
    """

    scale: float
    before: float
    after: float
    accuracy_before: float | None
    accuracy_after: float | None
    accepted: bool


def judge_linear(problem: Problem, as_found: Problem | None, solution: Solution, scale: float) -> Judgement:
    """Compare the outputs of a linear readout.

    Args:
        problem: The programme.
        as_found: The same before hidden weights were replaced; None: they were not.
        solution: A solution that was not fitted to the held-out rows.
        scale: Factor on it.
    """
    outputs = scale * (problem.dictionary.rows(problem.held_out) @ solution.coef + solution.intercept)
    found = as_found or problem
    before, after = problem.found_loss(), problem.held_out_loss(outputs)
    return Judgement(
        scale=scale,
        before=before,
        after=after,
        accuracy_before=found.held_out_accuracy(found.outputs[found.held_out]),
        accuracy_after=problem.held_out_accuracy(outputs),
        accepted=after < before,
    )


def is_clear(judgement: Judgement, problem: Problem) -> bool:
    """Whether the verdict on a roughly fitted solution holds for the certified one: it wins by more than it is rough.

    Args:
        judgement: The verdict.
        problem: The programme.
    """
    silent = problem.held_out_loss(problem.outputs.new_zeros(int(problem.held_out.sum()), problem.num_outputs))
    return judgement.accepted and judgement.after <= judgement.before - ROUGH * silent
