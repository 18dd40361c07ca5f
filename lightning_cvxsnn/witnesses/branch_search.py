"""Whole branches, proposed for column generation.

The units of one branch share its lower layers, so branches are drawn, compared and kept as wholes: a candidate takes
the place of the branch whose units contribute least where that lowers the programme's objective. Within branches that
are kept, units that the solution does not use are replaced by others on the same lower layers.
"""

import copy
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from lightning_cvxsnn.convex import Solution
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import CapturedProgramme
from lightning_cvxsnn.witnesses.branches import Branch, Branched, Branches, BranchSampler
from lightning_cvxsnn.witnesses.restricted import RestrictedMaster, RhoPath
from lightning_cvxsnn.witnesses.scores import deviations, score_columns
from lightning_cvxsnn.witnesses.search import Improvement, Master, SearchResult, SearchSettings


@dataclass(frozen=True)
class BranchSearchSettings(SearchSettings):
    """How hard a search for branches tries.

    Attributes:
        rounds: Rounds.
        drawn: Candidates of a round, times the branches of the network.
        mutated: Share of the candidates of later rounds that vary branches in use.
        mutation: Size of the noise on their weights, relative to these.
        rho_range: First and last rho, relative to the largest of the first dictionary; the first is not above the last,
            so that all branches are compared at one penalty.
        price: Choose the units of a candidate among more, vary branches in use, and exchange unused units for those
            that the dual point asks for. Without it candidates are random branches.
        wider: Units that a priced last layer is chosen from, times its width.
    """

    rounds: int = 3
    drawn: int = 4
    mutated: float = 0.5
    mutation: float = 0.5
    rho_range: tuple[float, float] = (0.0, 0.02)
    price: bool = True
    wider: int = 3


class BranchProposer:
    """Proposes whole branches, and new units on the lower layers of those in use.

    Args:
        branched: The network; only `write` changes it.
        inputs: ``[N, T, F]``, the programme's samples.
        problem: The programme. Its dictionary is not used; its held-out rows are not fitted.
        rate: Firing rate that every unit is scaled to.
        seed: Seed of the candidates.
        settings: How hard to try.

    Attributes:
        drawn: Branches proposed so far.
        candidates: Units proposed so far, those of branches and others.
    """

    def __init__(
        self,
        branched: Branched,
        inputs: Tensor,
        problem: CapturedProgramme,
        rate: float,
        seed: int,
        settings: BranchSearchSettings | None = None,
    ) -> None:
        self.branched, self.inputs, self.seed = branched, inputs, seed
        self.settings = settings or BranchSearchSettings()
        self.programme = RestrictedMaster(problem)
        self.sampler = BranchSampler(branched, inputs, rate)
        self.drawn = self.candidates = 0
        self._last_width = branched.widths[-1]
        self.width = self._last_width * len(branched.branches)

    @property
    def candidate_passes(self) -> int:
        """Candidates times samples run forward so far."""
        return self.sampler.passes

    @property
    def indistinct(self) -> str:
        """What to say where no branch of the network tells the training rows apart."""
        return (
            "The branches of the network fire alike on every training row, so there is nothing to choose by. Expected "
            "inputs that differ from row to row."
        )

    def initial(self) -> Branches:
        """The network's own branches, calibrated."""
        sampler = self.sampler
        return Branches([sampler.measure(sampler.calibrated(copy.deepcopy(own))) for own in self._own()])

    def improve(self, master: Master[Branches], path: RhoPath, index: int) -> Improvement[Branches]:
        """Challenge the lightest branch some times, then exchange the units that are not used."""
        for _ in range(self.settings.drawn * len(self.branched.branches)):
            master = self._challenged(master, path.rho, vary=index > 0)
        if not self.settings.price:
            return Improvement(master.witnesses, master.solution, solved=True)
        chosen, violation = self._exchanged(master, path.rho)
        return Improvement(chosen, master.solution, violation)

    @torch.no_grad()
    def write(self, network: Network, found: SearchResult[Branches]) -> None:
        """Copy weights and constants into the parameters and buffers of the network's branches, in place."""
        for own, branch in zip(self._own(), found.chosen.branches, strict=True):
            own.load_state_dict(branch.layers.state_dict())

    def _own(self) -> list[nn.Sequential]:
        return [cast(nn.Sequential, branch) for branch in self.branched.branches]

    def _exchanged(self, master: Master[Branches], rho: float) -> tuple[Branches, float]:
        """The branches with the best of new units in place of those not used; lower layers and constants stay.

        Beside them the largest ``|d^T U| / rho`` of the candidates.
        """
        exchanged, violation, unused = [], 0.0, ~master.solution.coef.any(1)
        for branch, places in zip(master.witnesses.branches, unused.split(self._last_width), strict=True):
            layers = self.sampler.widen(copy.deepcopy(branch.layers), self.settings.wider * self._last_width)
            wide = self._proposed(self.sampler.calibrated(layers, only_last=True))
            fitted = wide.columns.rows(self.programme.fitted)
            scores, violations = score_columns(fitted, master.solution.dual_point)
            violation = max(violation, float(violations.max()) / rho)
            best = scores.argsort(descending=True, stable=True)[: int(places.sum())]
            exchanged.append(self.sampler.put(branch, places, layers, best))
        return Branches(exchanged), violation

    def _challenged(self, master: Master[Branches], rho: float, *, vary: bool) -> Master[Branches]:
        """The branches after a candidate has taken the place of the lightest, if that lowers the objective."""
        kept, solution, settings = master.witnesses.branches, master.solution, self.settings
        masses = _masses(master.witnesses, solution).unflatten(0, (len(kept), -1)).sum(1)
        lightest = int(masses.argmin())
        if settings.price and vary and bool(masses.any()) and bool(torch.rand(()) < settings.mutated):
            layers = self.sampler.mutate(kept[int(torch.multinomial(masses, 1))].layers, settings.mutation)
        else:
            layers = self.sampler.draw()
        self.drawn += 1
        rest = [branch for index, branch in enumerate(kept) if index != lightest]
        stay = torch.arange(len(kept)).repeat_interleave(self._last_width) != lightest
        start = replace(solution, coef=solution.coef[stay])
        if settings.price:
            wide = self.sampler.widen(layers, settings.wider * self._last_width)
            branch, start = self._best_units(rest, self._proposed(self.sampler.calibrated(wide)), start, rho)
        else:
            branch = self._proposed(self.sampler.calibrated(layers))
            start = _padded(start, self._last_width)
        challenger = Branches([*rest, branch])
        found = self.programme.solve(challenger.columns, rho, start)
        return Master(challenger, found) if found.primal < solution.primal else master

    def _best_units(self, rest: list[Branch], wide: Branch, start: Solution, rho: float) -> tuple[Branch, Solution]:
        """The units of a wide branch that contribute most beside the others, and a point at their coefficients."""
        held, all_units = len(start.coef), Branches([*rest, wide])
        found = self.programme.solve(all_units.columns, rho, _padded(start, wide.columns.shape[1]))
        masses = _masses(all_units, found)[held:]
        units = masses.argsort(descending=True, stable=True)[: self._last_width]
        coef = torch.cat([found.coef[:held], found.coef[held:][units]])
        return self.sampler.cut(wide, units), replace(found, coef=coef)

    def _proposed(self, layers: nn.Sequential) -> Branch:
        branch = self.sampler.measure(layers)
        self.candidates += branch.columns.shape[1]
        return branch


def _masses(branches: Branches, solution: Solution) -> Tensor:
    """How much each unit contributes: its coefficients times how much it varies, float64 ``[units]``."""
    return solution.coef.abs().sum(1) * deviations(branches.columns)


def _padded(point: Solution, columns: int) -> Solution:
    """A point at the same coefficients, and at zero for some columns more."""
    return replace(point, coef=torch.cat([point.coef, point.coef.new_zeros(columns, point.coef.shape[1])]))
