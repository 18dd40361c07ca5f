"""Column generation: hidden weights found by what they are worth to the convex programme.

A unit outside the dictionary can improve the optimum only if its column ``d`` violates ``|d^T U| <= rho``, with U the
programme's dual point; a channel of a convolution is a unit of several columns, of which one has to. Rounds of solving
and of searching for violations go down a path of rho, from one at which few columns matter to the one wanted: early
solves are cheap, later ones start near their solution.
"""

from dataclasses import replace
from typing import Generic

import torch

from lightning_cvxsnn.runtime.progress import progress_step
from lightning_cvxsnn.runtime.rng import isolate_rng
from lightning_cvxsnn.witnesses.restricted import RhoPath
from lightning_cvxsnn.witnesses.search import Master, Proposer, SearchResult, SearchStatistics, W


class ColumnGeneration(Generic[W]):
    """Searches the witnesses of one proposer. Global random generators are as before afterwards.

    Args:
        proposer: Proposes witnesses for its programme.

    Example:
        A search of the last hidden units: ``ColumnGeneration(LayerProposer(layer, problem, ...)).search(rho=0.01)``.
    """

    def __init__(self, proposer: Proposer[W]) -> None:
        self.proposer = proposer

    def search(self, rho: float | None = None) -> SearchResult[W]:
        """Choose witnesses for all units of the network.

        Args:
            rho: Penalty of the programme. None: a share of the largest at which the first dictionary is of use, or
                where the loss on the held-out rows begins to rise before that.

        Raises:
            ValueError: If no first witness tells the training rows apart.
        """
        with torch.no_grad(), isolate_rng():
            torch.manual_seed(self.proposer.seed)
            return self._search(rho)

    def _search(self, rho: float | None) -> SearchResult[W]:
        proposer, programme = self.proposer, self.proposer.programme
        witnesses = proposer.initial()
        path = self._path(witnesses, rho)
        solution = programme.solve(witnesses.columns, path.rho, None)
        objectives, violation = [solution.primal], None
        for index in range(proposer.settings.rounds):
            if rho is None and not path.ended:
                path.judge(programme.held_out_loss(witnesses.columns, solution))
            with progress_step(index, proposer.settings.rounds):
                found = proposer.improve(Master(witnesses, solution), path, index)
                witnesses, solution = found.witnesses, found.point
                violation = violation if found.violation is None else found.violation
                if found.final:
                    break
                path.advance()
                if not found.solved:
                    solution = programme.solve(witnesses.columns, path.rho, solution)
            objectives.append(solution.primal)
        coef = solution.coef
        missing = coef.new_zeros(witnesses.columns.shape[1] - len(coef), coef.shape[1])
        return SearchResult(
            chosen=witnesses,
            solution=replace(solution, coef=torch.cat([coef, missing])),
            rho=path.rho if rho is None else rho,
            objectives=objectives,
            statistics=SearchStatistics(proposer.candidates, violation),
            candidate_passes=proposer.candidate_passes,
        )

    def _path(self, witnesses: W, rho: float | None) -> RhoPath:
        """From where few of the first witnesses are used to ``rho``, or to the settings' share of the largest."""
        first, last = self.proposer.settings.rho_range
        largest = 0.0
        if rho is None or first > 0:
            largest = self.proposer.programme.largest_rho(witnesses.columns)
            if largest == 0:
                raise ValueError(self.proposer.indistinct)
        end = last * largest if rho is None else rho
        return RhoPath(max(first * largest, end), end, self.proposer.settings.rounds)
