"""A weaker penalty than the one that few rows have chosen, where the rows that judge like it better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lightning_cvxsnn.convex import Point
from lightning_cvxsnn.network.programme import CapturedProgramme, Penalty
from lightning_cvxsnn.reconstruction.choosing import STEP, Choice, searches_some
from lightning_cvxsnn.reconstruction.guard import Judgement

__all__ = ["weakened"]

_MOST = 8  # steps, four decades: of rows that a readout tells apart the loss falls for ever


def weakened(
    programme: CapturedProgramme, choice: Choice, tolerance: float, judged: Callable[[Point], Judgement]
) -> Choice:
    """The last of ever weaker ridge penalties over all rows that validation rows like better than the one before.

    A penalty is chosen on a thousand rows. Over twelve times as many, with thousands of unknowns, it is too strong.
    Where there are not many more rows, the choice stays.

    Args:
        programme: Over all training rows.
        choice: What the search has found, on some of them.
        tolerance: Of the solves that are compared.
        judged: What validation rows say of a solution.
    """
    if not searches_some(programme):
        return choice
    solution = programme.solve(choice.penalty, tolerance, choice.point)
    judgement = judged(solution.point)
    for _ in range(_MOST):
        penalty = Penalty(choice.penalty.beta / STEP, 0.0)
        weaker = programme.solve(penalty, tolerance, solution.point)
        verdict = judged(weaker.point)
        if not verdict.after < judgement.after:
            break
        choice, solution, judgement = replace(choice, penalty=penalty, edge=None), weaker, verdict
    return replace(choice, point=solution.point)
