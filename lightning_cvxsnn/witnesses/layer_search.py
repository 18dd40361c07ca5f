"""The units of a layer, proposed for column generation."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import CapturedProgramme
from lightning_cvxsnn.witnesses.layer import WitnessLayer
from lightning_cvxsnn.witnesses.restricted import RestrictedMaster, RhoPath
from lightning_cvxsnn.witnesses.search import Improvement, Master, SearchResult, SearchSettings
from lightning_cvxsnn.witnesses.units import BACKWARD, Units, UnitSampler

#: Candidates of a pool, times the width: some three quarters of the work of column generation.
POOL = 16

_FIRST_SHARE = 8  # the first round starts from one unit in eight
_IMPROVED = 2.0  # of the candidates go on to the ascent, times the units wanted
_SCORE_SAMPLES = 1024


@dataclass(frozen=True)
class LayerSearchSettings(SearchSettings):
    """How hard a search for the units of a layer tries.

    Attributes:
        rounds: Rounds at most.
        drawn: Candidates of a round, times the width.
        mutated: Share of the candidates that vary units in use.
        mutation: Size of the noise on their weights, relative to these.
        rho_range: First and last rho, relative to the largest of the first dictionary.
        ascent_steps: Steps that the best candidates climb the surrogate gradient of their score.
        pool: Search only this many units, drawn once, instead of new ones each round; None: do not.
        keep_current: Whether the layer's units, as they are, are the first to choose from; else random ones are.
        budget: Work after which no further round begins, in training epochs of the layer: all units on every sample,
            forward and backward. It is 7 for 512 units on 6000 samples, and 40 to 120 for 16 units on 200, where the
            steps of the ascent weigh more.
    """

    rounds: int = 5
    drawn: int = 2
    mutated: float = 0.5
    mutation: float = 0.7
    rho_range: tuple[float, float] = (0.1, 0.02)
    ascent_steps: int = 25
    pool: int | None = None
    keep_current: bool = False
    budget: float = 100.0


class LayerProposer:
    """Proposes units of one layer: ever more of them, of which those in use are kept.

    Args:
        layer: The layer; its inputs are those of the programme's samples.
        problem: The programme. Its dictionary is not used; its held-out rows only judge rho.
        rate: Firing rate that every candidate is scaled to.
        seed: Seed of the candidates; global generators are neither read nor advanced.
        settings: How hard to try.
        width: Units to choose; None: those that the layer has.
    """

    def __init__(
        self,
        layer: WitnessLayer,
        problem: CapturedProgramme,
        rate: float,
        seed: int,
        settings: LayerSearchSettings | None = None,
        width: int | None = None,
    ) -> None:
        self.layer, self.seed, self.settings = layer, seed, settings or LayerSearchSettings()
        self.width = width or len(layer.weight)
        self.programme = RestrictedMaster(problem)
        self.sampler = UnitSampler(layer, self.programme, rate, seed)
        self.candidates = 0
        self._first = -(-self.width // _FIRST_SHARE)
        self._pool: Units | None = None

    @property
    def candidate_passes(self) -> int:
        """Candidates times samples run forward so far; a step of the ascent counts as three passes."""
        return self.sampler.passes

    @property
    def indistinct(self) -> str:
        """What to say where no first unit tells the training rows apart."""
        return (
            f"Random weights in '{self.layer.affine_name}' make its units fire alike on every training row, so "
            "there is nothing to choose by. Expected inputs that differ from row to row."
        )

    def initial(self) -> Units:
        """One unit in eight, or all that the layer has."""
        if self.settings.pool is not None:
            self._pool = self.sampler.measure(*self.sampler.draw(self.settings.pool))
            self.candidates += self.settings.pool
        if self.settings.keep_current:
            present = self.sampler.measure(self.layer.weight.detach().clone(), self.layer.bias.detach().clone())
            if not bool(present.columns.constant.all()):
                return present
        if self._pool is not None:
            return self._pool.pick(torch.arange(self._first))
        return self.sampler.measure(*self.sampler.draw(self._first))

    def improve(self, master: Master[Units], path: RhoPath, index: int) -> Improvement[Units]:
        """Keep the units in use; add some that violate, and in the last round the best up to the width.

        The last round is the one after which the work is done, or in which nothing violates and rho falls no further.
        """
        used = self._any(master.solution.coef.any(1)).nonzero()[:, 0]
        if len(used):
            master = self._subset(master, used)
        units, solution = master.witnesses, master.solution
        settings, width = self.settings, self.width
        affordable = settings.budget * BACKWARD * width * self.layer.inputs.shape[1]
        final = index + 1 == settings.rounds or self.candidate_passes >= affordable
        grown = self._first + (width - self._first) * (index + 1) // settings.rounds
        wanted = (width if final else grown) - len(units)
        violation = None
        if wanted > 0:
            candidates = self._propose(wanted, master) if self._pool is None else self._pool
            scores, violations = self._score(candidates, solution.dual_point)
            violation = float(violations.max()) / path.rho
            order = scores.argsort(descending=True)
            if violation <= 1 and not path.moving:
                final, wanted = True, width - len(units)
            if not final:
                order = order[violations[order] > path.rho]
            units = units.join(candidates.pick(self._distinct(candidates, order, units, wanted)))
        if final and len(units) < width:
            units = units.join(self.sampler.measure(*self.sampler.draw(width - len(units))))
        return Improvement(units, solution, violation, final=final)

    def write(self, network: Network, found: SearchResult[Units]) -> None:
        """Give the layer's units the weights that were chosen, in place."""
        self.layer.write(network, torch.arange(self.width), found.chosen.weight, found.chosen.bias)

    def _any(self, columns: Tensor) -> Tensor:
        return columns.view(-1, self.layer.columns_per_unit).any(1)

    def _subset(self, master: Master[Units], units: Tensor) -> Master[Units]:
        """Some of the units, and a point at their coefficients."""
        coef = master.solution.coef.unflatten(0, (-1, self.layer.columns_per_unit))[units].flatten(0, 1)
        return Master(master.witnesses.pick(units), replace(master.solution, coef=coef))

    def _propose(self, wanted: int, master: Master[Units]) -> Units:
        """New candidates, somewhat more than ``wanted``, compared and improved on some of the fitted samples."""
        settings, sampler, dual = self.settings, self.sampler, master.solution.dual_point
        count = max(settings.drawn * len(self.layer.weight), 2 * wanted)
        importance = master.solution.coef.abs().sum(1).view(-1, self.layer.columns_per_unit).sum(1)
        mutants = int(settings.mutated * count) if bool(importance.any()) else 0
        weight, bias = sampler.draw(count - mutants)
        if mutants:
            more = sampler.mutate(mutants, master.witnesses, importance, settings.mutation)
            weight, bias = torch.cat([weight, more[0]]), torch.cat([bias, more[1]])
        self.candidates += count
        inputs, rows = sampler.some_inputs(_SCORE_SAMPLES)
        sampler.count_passes(count, inputs.shape[1])
        few = Units(weight, bias, self.layer.columns(inputs, weight, bias))
        scores, _ = sampler.scores.score(few.columns, dual[rows])
        keep = math.ceil(_IMPROVED * wanted)
        few = few.pick(self._distinct(few, scores.argsort(descending=True)[: 4 * keep], None, keep, fill=True))
        weight, bias = few.weight, few.bias
        if settings.ascent_steps:
            weight, bias = sampler.ascend(weight, bias, dual, settings.ascent_steps)
        return sampler.measure(weight, bias)

    def _score(self, candidates: Units, dual: Tensor) -> tuple[Tensor, Tensor]:
        return self.sampler.scores.score(candidates.columns.rows(self.programme.fitted), dual)

    def _distinct(
        self, candidates: Units, order: Tensor, units: Units | None, count: int, *, fill: bool = False
    ) -> Tensor:
        """The first ``count`` of ``order`` that differ from ``units`` and each other; ``fill``: then any others."""
        order = order[: 4 * count]
        others = None if units is None else units.columns
        chosen = self.sampler.scores.distinct(candidates.pick(order).columns, others, count)
        if fill:
            chosen += [p for p in range(len(order)) if p not in set(chosen)][: count - len(chosen)]
        return order[chosen]
