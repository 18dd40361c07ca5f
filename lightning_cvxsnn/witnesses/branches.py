"""Whole branches as witnesses: all layers of a branch and the constants of its neurons, chosen by the programme.

The units of one branch share its lower layers, so branches are drawn, compared and kept as wholes: a candidate takes
the place of the branch whose units contribute least where that lowers the programme's objective. Within branches that
are kept, units that the solution does not use are replaced by others on the same lower layers.
"""

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_cvxsnn.convex import Point, Solution
from lightning_cvxsnn.network import reset_neurons
from lightning_cvxsnn.network.programme import CapturedProgramme
from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.runtime.work import count_work
from lightning_cvxsnn.tasks.models import ParallelSNN
from lightning_cvxsnn.witnesses.calibrate import factors_for
from lightning_cvxsnn.witnesses.column_generation import Tried

_ROUNDS = 3
_DRAWN = 4  # candidates of a round, times the branches of the network
_MUTATED = 0.5  # of the candidates of later rounds vary branches in use,
_MUTATION = 0.5  # with noise of this size relative to their weights
_WIDER = 3  # units a priced last layer is chosen from, times its width
_CALIBRATION_SAMPLES = 256
_TOLERANCE = 0.1  # relative gap of a solve
_RHO_SHARE = 0.02  # rho, relative to the largest of the first dictionary, where it is not given
_BLOCK = 2**22  # spikes of one layer held at once


@dataclass(frozen=True, eq=False)
class Branch:
    """A branch and the columns of its last layer.

    Attributes:
        layers: Linear and LIF layers in turn.
        columns: ``[n, P / K]``.
    """

    layers: nn.Sequential
    columns: SpikeDictionary


@dataclass(frozen=True, eq=False)
class ChosenBranches:
    """What the search found.

    Attributes:
        branches: As many as the network has.
        rho: The penalty they were compared at.
        objectives: Objective over the network's own branches, calibrated, then after each round; it never rises.
        candidates: Number of branches tried.
        tried: Their units, and those that unused ones were compared with.
    """

    branches: list[Branch]
    rho: float
    objectives: list[float]
    candidates: int
    tried: Tried


class BranchSearch:
    """Searches the branches of one network for one programme.

    Args:
        network: The network; it is not changed.
        inputs: ``[N, T, F]``, the programme's samples.
        problem: The programme. Its dictionary is not used; its held-out rows are not fitted.
        rate: Firing rate that every unit is scaled to.
        seed: Seed of the candidates; global generators are neither read nor advanced.
    """

    def __init__(
        self, network: ParallelSNN, inputs: Tensor, problem: CapturedProgramme, rate: float, seed: int
    ) -> None:
        self.network, self.problem, self.rate = network, problem, rate
        self.candidates = self._units = 0
        self._violation: float | None = None
        self.samples = len(inputs)
        self._steps = inputs.transpose(0, 1)
        self._seed = seed
        self._fitted = ~problem.held_out
        self._width = network.widths[-1]

    def run(self, rho: float | None = None, *, price: bool) -> ChosenBranches:
        """Choose as many branches as the network has.

        Args:
            rho: Penalty of the programme. None: a fiftieth of the largest at which the network's branches are of use.
            price: Choose the units of a candidate among more, vary branches in use, and exchange unused units for those
                that the dual point asks for. Without it candidates are random branches.

        Raises:
            ValueError: If the network's own branches do not tell the training rows apart.
        """
        with isolate_rng(), torch.no_grad():
            torch.manual_seed(self._seed)
            own: Any = self.network.branches
            kept = [self._branch(self._calibrated(copy.deepcopy(branch))) for branch in own]
            if rho is None:
                largest = self._programme(kept).largest_rho(self._fitted)
                if largest == 0:
                    raise ValueError(
                        "The branches of the network fire alike on every training row, so there is nothing to choose "
                        "by. Expected inputs that differ from row to row."
                    )
                rho = _RHO_SHARE * largest
            solution = self._solve(kept, rho, None)
            objectives = [solution.primal]
            for index in range(_ROUNDS):
                for _ in range(_DRAWN * len(kept)):
                    kept, solution = self._challenged(kept, solution, rho, price, vary=index > 0)
                if price:
                    kept = self._exchanged(kept, solution, ~solution.coef.any(1), rho)
                    solution = self._solve(kept, rho, solution.point)
                objectives.append(solution.primal)
        return ChosenBranches(kept, rho, objectives, self.candidates, Tried(self._units, self._violation))

    def recycle(self, free: Tensor, rho: float, start: Point | None) -> Tried:
        """Write new units into the places of those that are free and that the programme does not use.

        Lower layers and constants stay. The work counts in `convex.work`.

        Args:
            free: Bool ``[P]``.
            rho: Penalty of the programme.
            start: A point to start its solve from.
        """
        with isolate_rng(), torch.no_grad():
            torch.manual_seed(self._seed)
            kept = [self._branch(copy.deepcopy(branch)) for branch in cast(Any, self.network.branches)]
            solution = self._solve(kept, rho, start)
            unused = free & ~solution.coef.any(1)
            if bool(unused.any()):
                self.write(self._exchanged(kept, solution, unused, rho))
        return Tried(self._units, self._violation)

    @torch.no_grad()
    def write(self, branches: list[Branch]) -> None:
        """Copy weights and constants into the network's own parameters and buffers, in place."""
        for own, branch in zip(self.network.branches, branches, strict=True):
            own.load_state_dict(branch.layers.state_dict())

    def _challenged(
        self, kept: list[Branch], solution: Solution, rho: float, price: bool, *, vary: bool
    ) -> tuple[list[Branch], Solution]:
        """The branches after a candidate has taken the place of the lightest, if that lowers the objective."""
        self.candidates += 1
        masses = self._masses(kept, solution).unflatten(0, (len(kept), -1)).sum(1)
        weakest = int(masses.argmin())
        if price and vary and bool(masses.any()) and bool(torch.rand(()) < _MUTATED):
            layers = self._mutated(kept[int(torch.multinomial(masses, 1))].layers)
        else:
            layers = self.network.draw_branch().to(self._steps)
        rest = [branch for index, branch in enumerate(kept) if index != weakest]
        held = torch.cat(
            [part for i, part in enumerate(solution.coef.split(self._width)) if i != weakest] or [solution.coef[:0]]
        )
        if price:
            branch = self._branch(self._calibrated(self._wider(layers)))
            self._units += branch.columns.shape[1]
            wide = self._solve([*rest, branch], rho, self._padded(solution, held, _WIDER * self._width))
            units = self._masses([*rest, branch], wide)[len(held) :].argsort(descending=True, stable=True)[
                : self._width
            ]
            branch = self._cut(branch, units)
            coef = torch.cat([wide.coef[: len(held)], wide.coef[len(held) :][units]])
            start = Point(coef, wide.intercept, wide.dual_point)
        else:
            branch = self._branch(self._calibrated(layers))
            self._units += branch.columns.shape[1]
            start = self._padded(solution, held, self._width)
        found = self._solve([*rest, branch], rho, start)
        return ([*rest, branch], found) if found.primal < solution.primal else (kept, solution)

    def _exchanged(self, kept: list[Branch], solution: Solution, unused: Tensor, rho: float) -> list[Branch]:
        """The same branches with ``unused`` units, bool ``[P]``, replaced by the best of new ones."""
        exchanged = []
        self._violation = 0.0
        for branch, free in zip(kept, unused.split(self._width), strict=True):
            layers = self._wider(copy.deepcopy(branch.layers))
            affine: Any = layers[-2]
            wide = self._branch(self._calibrated(layers, only_last=True))
            self._units += wide.columns.shape[1]
            products = wide.columns.rows(self._fitted).column_scores(solution.dual_point)
            self._violation = max(self._violation, float(products.abs().max()) / rho)
            best = self._best(wide.columns, products)[: int(free.sum())]
            own: Any = copy.deepcopy(branch.layers)
            own[-2].weight[free] = affine.weight[best]
            own[-2].bias[free] = affine.bias[best]
            exchanged.append(self._branch(own))
        return exchanged

    def _mutated(self, layers: nn.Sequential) -> nn.Sequential:
        """A branch with noise on its weights and the same constants."""
        varied: Any = copy.deepcopy(layers)
        for affine in varied[::2]:
            size = affine.weight.norm(dim=1, keepdim=True) / affine.in_features**0.5
            affine.weight.add_(_MUTATION * size * torch.randn_like(affine.weight))
        return varied

    def _wider(self, layers: nn.Sequential) -> nn.Sequential:
        """The same lower layers and constants with new, and more, units in the last layer."""
        own: Any = layers
        affine = nn.Linear(own[-2].in_features, _WIDER * self._width).to(own[-2].weight)
        return nn.Sequential(*own[:-2], affine, own[-1])

    def _cut(self, branch: Branch, units: Tensor) -> Branch:
        """A branch of some of the units of a wider one."""
        own: Any = branch.layers
        affine = nn.Linear(own[-2].in_features, len(units)).to(own[-2].weight)
        affine.weight.copy_(own[-2].weight[units])
        affine.bias.copy_(own[-2].bias[units])
        return Branch(nn.Sequential(*own[:-2], affine, own[-1]), branch.columns.columns(units))

    def _calibrated(self, layers: nn.Sequential, *, only_last: bool = False) -> nn.Sequential:
        """``layers``, each unit scaled so that it fires at the rate, in place and from the first layer on."""
        samples = torch.randperm(self._steps.shape[1])[:_CALIBRATION_SAMPLES]
        spikes = self._steps[:, samples.to(self._steps.device)]
        parts: Any = layers
        for position in range(0, len(parts), 2):
            affine, neuron = parts[position], parts[position + 1]
            currents = affine(spikes)
            factors = torch.ones_like(affine.bias)
            if not only_last or position + 2 == len(parts):
                rates = partial(_rates, neuron, currents)
                factors = factors_for(rates, affine.out_features, self.rate, currents.device)
            affine.weight.mul_(factors[:, None])
            affine.bias.mul_(factors)
            spikes = _run(neuron, currents * factors)
        return layers

    def _branch(self, layers: nn.Sequential) -> Branch:
        """The columns of a branch of any last width."""
        steps, samples, _ = self._steps.shape
        affines: Any = layers[::2]
        count_work(samples * steps * sum(affine.weight.numel() for affine in affines) // 2)  # of float32 numbers
        rows = max(_BLOCK // (steps * max(affine.out_features for affine in affines)), 1)
        parts = []
        for block in self._steps.split(rows, dim=1):
            reset_neurons(layers)
            values = self.network.features(layers, block)
            parts.append(values.transpose(0, 1).flatten(0, 1) if self.network.reduction == "all" else values)
        reset_neurons(layers)
        values, scale = torch.cat(parts), 1.0
        if self.network.reduction == "mean":
            values, scale = (values * steps).round(), 1 / steps
        return Branch(layers, SpikeDictionary(SpikeDictionary.from_values(values).counts.cpu(), scale))

    def _programme(self, branches: list[Branch]) -> CapturedProgramme:
        return replace(self.problem, dictionary=SpikeDictionary.side_by_side([branch.columns for branch in branches]))

    def _solve(self, branches: list[Branch], rho: float, start: Point | None) -> Solution:
        return self._programme(branches).solve(rho, _TOLERANCE, start, self._fitted)

    def _padded(self, solution: Solution, coef: Tensor, units: int) -> Point:
        """A point at ``coef`` and zeros for some units more."""
        coef = torch.cat([coef, coef.new_zeros(units, coef.shape[1])])
        return Point(coef, solution.intercept, solution.dual_point)

    def _masses(self, branches: list[Branch], solution: Solution) -> Tensor:
        """How much each unit contributes: its coefficients times how much it varies, float64 ``[units]``."""
        return solution.coef.abs().sum(1) * torch.cat([self._spread(branch.columns) for branch in branches])

    def _best(self, columns: SpikeDictionary, products: Tensor) -> Tensor:
        """Positions of the columns by the size of ``products``, ``D^T U``, duplicates last."""
        fitted = columns.rows(self._fitted)
        size = self._spread(fitted) + fitted.shape[0] ** -0.5  # so that a column of few spikes wins nothing
        scores = products.norm(dim=1) / size
        first = torch.zeros(columns.shape[1], dtype=torch.bool)
        first[fitted.distinct_columns().witness] = True
        return torch.where(first, scores, -1.0).argsort(descending=True, stable=True)

    def _spread(self, columns: SpikeDictionary) -> Tensor:
        """Standard deviation of each column, of zeros and ones of its rate."""
        return (columns.rates * (1 - columns.rates)).clamp_min(0).sqrt()


def _rates(neuron: nn.Module, currents: Tensor, factors: Tensor) -> Tensor:
    return _run(neuron, currents * factors).mean((0, 1))


def _run(neuron: nn.Module, currents: Tensor) -> Tensor:
    reset_neurons(neuron)
    spikes = neuron(currents)
    reset_neurons(neuron)
    return spikes
