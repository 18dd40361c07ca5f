"""Column generation: hidden weights found by what they are worth to the convex programme.

A unit outside the dictionary can improve the optimum only if its column ``d`` violates ``|d^T U| <= rho``, with U the
programme's dual point; a channel of a convolution is a unit of several columns, of which one has to. Rounds of solving
and of searching for violations go down a path of rho, from one at which few units matter to the one wanted: early
solves are cheap, later ones start near their solution.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_cvxsnn.convex import Point, Solution
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import CapturedProgramme
from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.runtime.work import count_work
from lightning_cvxsnn.witnesses.layer import WitnessLayer
from lightning_cvxsnn.witnesses.samplers import between, pairs

#: Candidates of a pool, times the width: some three quarters of the work of column generation.
POOL = 16

#: Work of column generation at most, in training epochs of the layer. It is 7 for 512 units on 6000 samples, and 40 to
#: 120 for 16 units on 200, where the ascent's steps weigh more.
BUDGET = 100.0

_BACKWARD = 3  # a pass forward and backward, in passes forward
_ROUNDS = 5
_FIRST_SHARE = 8  # the first round starts from one unit in eight
_DRAWN = 2  # candidates of a round, times the width
_IMPROVED = 2.0  # of them go on to the ascent, times the units wanted
_MUTATED = 0.5  # of the candidates come from units in use,
_MUTATION = 0.7  # with noise of this size relative to their weights
_CALIBRATION_SAMPLES = 128
_SCORE_SAMPLES = 1024
_ASCENT_STEPS = 25
_ASCENT_SAMPLES = 512
_ASCENT_CURRENTS = 2**23  # of all units at most: maps have many
_FEWEST = 32  # samples in any case
_ASCENT_RATE = 0.1  # of Adam, relative to the root mean square of a unit's weights
_ALIKE = 0.9  # correlation of columns above which one of them is enough
_TOLERANCE = 0.1  # relative gap of a round's solve
_RHO_RANGE = 0.1, 0.02  # first and last rho, relative to the largest of the first dictionary
_BLOCK = 2**22  # entries of candidates' columns scored at once
_TINY = 1e-6


@dataclass(frozen=True, eq=False)
class Units:
    """Hidden units of a layer and their columns, unit by unit.

    Attributes:
        weight: ``[M, F]``.
        bias: ``[M]``; zeros where the layer has none.
        columns: ``[n, M G]``, G of each unit.
    """

    weight: Tensor
    bias: Tensor
    columns: SpikeDictionary

    def __len__(self) -> int:
        return len(self.weight)

    def pick(self, index: Tensor) -> "Units":
        """Those at ``index``, int64 positions."""
        own = self.columns.shape[1] // len(self)
        columns = self.columns.columns((index[:, None] * own + torch.arange(own)).flatten())
        return Units(self.weight[index], self.bias[index], columns)

    def join(self, other: "Units") -> "Units":
        """These, then ``other``."""
        columns = SpikeDictionary.side_by_side([self.columns, other.columns])
        return Units(torch.cat([self.weight, other.weight]), torch.cat([self.bias, other.bias]), columns)


@dataclass(frozen=True, eq=False)
class Priced:
    """What column generation found.

    Attributes:
        units: As many as asked for: the support of the last solution, the best of those that would join it and, where
            too few of these differ, random ones.
        solution: The last solution, with zeros for the latter: a point to start from.
        rho: Its penalty.
        objectives: Objective of each round, at falling rho.
        violation: Largest ``|d^T U| / rho`` of the last candidates' columns; above 1, more units would still help. None
            if none were needed.
        candidates: Number of candidates tried.
        work: Candidates times samples run forward; a step of the ascent counts as three passes.
    """

    units: Units
    solution: Solution
    rho: float
    objectives: list[float]
    violation: float | None
    candidates: int
    work: int


@dataclass(frozen=True)
class Tried:
    """How hard a search for units tried.

    Attributes:
        candidates: Units tried.
        violation: Largest ``|d^T U| / rho`` of the last ones; above 1, they lower the objective. None if none were
            needed or priced.
    """

    candidates: int
    violation: float | None


class Pricer:
    """Searches the units of one layer for one programme.

    Args:
        layer: The layer; its inputs are those of the programme's samples.
        problem: The programme. Its dictionary is not used; its held-out rows only judge rho.
        rate: Firing rate that every candidate is scaled to.
        seed: Seed of the candidates; global generators are neither read nor advanced.
    """

    def __init__(self, layer: WitnessLayer, problem: CapturedProgramme, rate: float, seed: int) -> None:
        self.layer, self.problem, self.rate = layer, problem, rate
        self._generator = torch.Generator().manual_seed(seed)
        self._fan_in, self._own = layer.weight.shape[1], layer.columns_per_unit
        self._fitted = ~problem.held_out
        samples = self._fitted.unflatten(0, (layer.inputs.shape[1], -1))[:, 0].nonzero()[:, 0]
        self._inputs = layer.inputs.index_select(1, samples.to(layer.inputs.device))
        self._sample_rows = len(self._fitted) // layer.inputs.shape[1]
        self.candidates = self.work = 0

    def run(
        self,
        width: int,
        rho: float | None = None,
        *,
        own: bool = False,
        ascend: bool = True,
        mutate: bool = True,
        pool: int | None = None,
        budget: float = BUDGET,
    ) -> Priced:
        """Find ``width`` units.

        Rounds end early where no candidate violates and rho falls no further, or where the work is done.

        Args:
            width: Number of units.
            rho: Penalty of the programme. None: a fiftieth of the largest at which a first dictionary is of use, or
                where the loss on the held-out rows begins to rise before that.
            own: Whether the layer's present units, as they are, are the first to choose from; else random ones are.
            ascend: Whether candidates climb the surrogate gradient of their score.
            mutate: Whether half of the candidates are variations of units in use.
            pool: Search only this many units, drawn once, instead of new ones each round.
            budget: Work after which no further round begins, in training epochs of the layer: ``width`` units on every
                sample, forward and backward.

        Raises:
            ValueError: If no candidate tells the training rows apart.
        """
        stock = None if pool is None else self._units(*self.draw(pool))
        self.candidates += pool or 0
        first = -(-width // _FIRST_SHARE)
        units = self._present() if own else None
        if units is None or bool(units.columns.constant.all()):
            units = self._units(*self.draw(first)) if stock is None else stock.pick(torch.arange(first))
        largest = replace(self.problem, dictionary=units.columns).largest_rho(self._fitted)
        if largest == 0:
            raise ValueError(
                f"Random weights in '{self.layer.affine_name}' make its units fire alike on every training row, so "
                "there is nothing to choose by. Expected inputs that differ from row to row."
            )
        last = _RHO_RANGE[1] * largest if rho is None else rho
        value = max(_RHO_RANGE[0] * largest, last)
        factor = (last / value) ** (1 / (_ROUNDS - 1))
        start: Point | None = None
        objectives: list[float] = []
        best_loss = math.inf
        violation: float | None = None
        affordable = budget * _BACKWARD * width * self.layer.inputs.shape[1]
        for index in range(_ROUNDS):
            problem = replace(self.problem, dictionary=units.columns)
            solution = problem.solve(value, _TOLERANCE, start, self._fitted)
            objectives.append(solution.primal)
            outputs = units.columns.rows(problem.held_out) @ solution.coef + solution.intercept
            loss = problem.held_out_loss(outputs)
            falling = rho is not None or loss < best_loss
            best_loss = min(loss, best_loss)

            used = self._any(solution.coef.any(1)).nonzero()[:, 0]
            if len(used):
                units, solution = units.pick(used), self._kept(solution, used)
            start = solution.point
            moving = falling and value > last
            final = index + 1 == _ROUNDS or self.work >= affordable
            wanted = (width if final else first + (width - first) * (index + 1) // _ROUNDS) - len(units)
            if wanted > 0:
                candidates = self._search(wanted, units, solution, ascend, mutate) if stock is None else stock
                scores, violations = self._score(candidates.columns.rows(self._fitted), solution.dual_point)
                violation = float(violations.max()) / value
                order = scores.argsort(descending=True)
                if violation <= 1 and not moving:
                    final, wanted = True, width - len(units)
                if not final:
                    order = order[violations[order] > value]
                units = units.join(candidates.pick(self._distinct(candidates, order, units, wanted, fill=False)))
            if final:
                if len(units) < width:
                    units = units.join(self._units(*self.draw(width - len(units))))
                break
            if falling:
                value *= factor
        missing = width * self._own - len(solution.coef)
        coef = torch.cat([solution.coef, solution.coef.new_zeros(missing, solution.coef.shape[1])])
        return Priced(
            units=units,
            solution=replace(solution, coef=coef),
            rho=value if rho is None else rho,
            objectives=objectives,
            violation=violation,
            candidates=self.candidates,
            work=self.work,
        )

    @torch.no_grad()
    def recycle(self, free: Tensor, rho: float, start: Point | None, network: Network) -> Tried:
        """Write better weights into units of the layer that are free and that the programme does not use.

        Those of constant columns are replaced in any case, others as long as there are candidates that violate. The
        work counts in `convex.work`.

        Args:
            free: Bool ``[P]``, of columns; a unit is free if all of its columns are.
            rho: Penalty of the programme.
            start: A point to start its solve from.
            network: The network that the layer is part of.
        """
        free = self.whole(free)
        units = self._present()
        solution = replace(self.problem, dictionary=units.columns).solve(rho, _TOLERANCE, start, self._fitted)
        used = self._any(solution.coef.any(1))
        places = (free & ~used).nonzero()[:, 0]
        constant = self.whole(units.columns.constant)[places]
        places = places[(~constant).int().argsort(stable=True)]
        if not len(places):
            return Tried(0, None)
        kept = (~free | used).nonzero()[:, 0]
        others, solution = units.pick(kept), self._kept(solution, kept)
        found = self._search(len(places), others, solution, ascend=True, mutate=True)
        scores, violations = self._score(found.columns.rows(self._fitted), solution.dual_point)
        order = scores.argsort(descending=True)
        order = order[(violations[order] <= rho).int().argsort(stable=True)]
        chosen = self._distinct(found, order, others, len(places), fill=False)
        chosen = chosen[violations[chosen] > rho]
        if len(chosen) < constant.sum():
            chosen = self._distinct(found, order, others, int(constant.sum()), fill=True)
        new = found.pick(chosen)
        self.layer.write(network, places[: len(chosen)], new.weight, new.bias)
        return Tried(self.candidates, float(violations.max()) / rho)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Weights ``[count, F]`` and biases ``[count]``, half from pairs, half random, mixed and calibrated."""
        fan_in, paired = self._fan_in, count // 2
        weight = torch.randn(count - paired, fan_in, generator=self._generator) / fan_in**0.5
        bias = (2 * torch.rand(count - paired, generator=self._generator) - 1) / fan_in**0.5
        weight, bias = self._calibrated(weight.to(self.layer.weight), bias.to(self.layer.weight))
        if paired:
            more = self.draw_pairs(paired)
            weight, bias = torch.cat([weight, more[0]]), torch.cat([bias, more[1]])
        order = torch.randperm(count, generator=self._generator)
        return weight[order], bias[order]

    def draw_pairs(self, count: int) -> tuple[Tensor, Tensor]:
        """Weights ``[count, F]`` and biases ``[count]`` from pairs of fitted samples, calibrated."""
        targets = self.problem.targets[self._fitted].unflatten(0, (-1, self._sample_rows))[:, -1]
        points = pairs(self._inputs, targets, count, self._generator)
        weight, bias = between(*self.layer.patches(*points, self._generator))
        return self._calibrated(weight.to(self.layer.weight), bias.to(self.layer.weight))

    def whole(self, columns: Tensor) -> Tensor:
        """Units ``[M]`` all of whose columns are marked in ``columns``, bool ``[M G]``."""
        return columns.view(-1, self._own).all(1)

    def _any(self, columns: Tensor) -> Tensor:
        return columns.view(-1, self._own).any(1)

    def _kept(self, solution: Solution, units: Tensor) -> Solution:
        """A point at the coefficients of some units."""
        return replace(solution, coef=solution.coef.unflatten(0, (-1, self._own))[units].flatten(0, 1))

    def _calibrated(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self._some_inputs(_CALIBRATION_SAMPLES)[0]
        self._count(len(weight), inputs.shape[1])
        if not self.layer.has_bias:
            bias = torch.zeros_like(bias)
        return self.layer.calibrated(inputs, weight, bias, self.rate)

    def _mutated(self, count: int, units: Units, solution: Solution) -> tuple[Tensor, Tensor]:
        """Units in use, drawn by the size of their coefficients, with noise on their weights."""
        importance = solution.coef.abs().sum(1).view(-1, self._own).sum(1)
        parents = torch.multinomial(importance, count, replacement=True, generator=self._generator)
        weight = units.weight[parents]
        noise = torch.randn(weight.shape, generator=self._generator).to(weight)
        weight = weight + _MUTATION * noise * weight.norm(dim=1, keepdim=True) / weight.shape[1] ** 0.5
        return self._calibrated(weight, units.bias[parents])

    def _search(self, wanted: int, units: Units, solution: Solution, ascend: bool, mutate: bool) -> Units:
        """New candidates, somewhat more than ``wanted``, compared and improved on some of the fitted samples."""
        count = max(_DRAWN * len(self.layer.weight), 2 * wanted)
        mutants = int(_MUTATED * count) if mutate and bool(solution.coef.any()) else 0
        weight, bias = self.draw(count - mutants)
        if mutants:
            more = self._mutated(mutants, units, solution)
            weight, bias = torch.cat([weight, more[0]]), torch.cat([bias, more[1]])
        self.candidates += count
        inputs, rows = self._some_inputs(_SCORE_SAMPLES)
        self._count(count, inputs.shape[1])
        columns = self.layer.columns(inputs, weight, bias)
        scores, _ = self._score(columns, solution.dual_point[rows])
        few = Units(weight, bias, columns)
        keep = math.ceil(_IMPROVED * wanted)
        few = few.pick(self._distinct(few, scores.argsort(descending=True)[: 4 * keep], None, keep, fill=True))
        weight, bias = few.weight, few.bias
        if ascend:
            weight, bias = self._calibrated(*self._ascend(weight, bias, solution.dual_point))
        return self._units(weight, bias)

    @torch.enable_grad()
    def _ascend(self, weight: Tensor, bias: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
        """Climb the score by the neuron's surrogate gradient; units of any size move at the same relative rate."""
        size = weight.square().mean(1, keepdim=True).sqrt()
        point = [(weight / size).requires_grad_(), (bias / size[:, 0]).requires_grad_()]
        optimizer = torch.optim.Adam(point, lr=_ASCENT_RATE)
        most = _ASCENT_CURRENTS // (len(weight) * self.layer.places * len(self._inputs))
        samples = min(_ASCENT_SAMPLES, max(most, _FEWEST))
        self.layer.neuron.train()  # some neurons have a surrogate gradient in this mode only
        for _ in range(_ASCENT_STEPS):
            inputs, rows = self._some_inputs(samples)
            self._count(_BACKWARD * len(weight), inputs.shape[1])
            spikes = self.layer.spikes(inputs, point[0] * size, point[1] * size[:, 0])
            values, scale = self.layer.rows(spikes)
            score, _ = self._correlate(values * scale, dual[rows].to(values))
            gradient = torch.autograd.grad(score.sum(), point)
            for parameter, g in zip(point, gradient, strict=True):
                parameter.grad = -g
            if not self.layer.has_bias:
                point[1].grad = None
            optimizer.step()
        self.layer.neuron.eval()
        return (point[0] * size).detach(), (point[1] * size[:, 0]).detach()

    def _count(self, units: int, samples: int) -> None:
        """Count a pass of ``units`` over ``samples``, here and, by its multiply-adds, in `convex.work`."""
        self.work += units * samples
        count_work(units * samples * len(self._inputs) * self.layer.places * self._fan_in // 2)  # of float32 numbers

    def _some_inputs(self, count: int) -> tuple[Tensor, Tensor]:
        """Inputs of random fitted samples (all if there are fewer), and their rows in the dual point."""
        samples = torch.randperm(self._inputs.shape[1], generator=self._generator)[:count]
        rows = samples[:, None] * self._sample_rows + torch.arange(self._sample_rows)
        return self._inputs.index_select(1, samples.to(self._inputs.device)), rows.flatten()

    def _present(self) -> Units:
        """The layer's own."""
        return self._units(self.layer.weight.detach().clone(), self.layer.bias.detach().clone())

    def _units(self, weight: Tensor, bias: Tensor) -> Units:
        self._count(len(weight), self.layer.inputs.shape[1])
        return Units(weight, bias, self.layer.columns(self.layer.inputs, weight, bias))

    def _score(self, columns: SpikeDictionary, dual: Tensor) -> tuple[Tensor, Tensor]:
        """Score and ``max |d^T U_c|`` of each unit."""
        parts = torch.arange(columns.shape[1]).split(max(_BLOCK // columns.shape[0] // self._own, 1) * self._own)
        dense = (columns.columns(part).to_dense(torch.float32) for part in parts)
        scores, violations = zip(*(self._correlate(block, dual.float()) for block in dense), strict=True)
        return torch.cat(scores), torch.cat(violations)

    def _correlate(self, columns: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
        """``||d^T U||`` over the size of ``d``, so that a high rate alone wins nothing, and ``max_c |d^T U_c|``.

        Of a unit of several columns: the norm of theirs, and the largest.
        """
        if self.problem.fit_intercept:
            columns = columns - columns.mean(0)
        products = dual.T @ columns
        size = (columns.square().sum(0) + 1.0).sqrt()
        scores = (products.norm(dim=0) / size).view(-1, self._own).norm(dim=1)
        return scores, products.abs().amax(0).view(-1, self._own).amax(1)

    def _distinct(self, candidates: Units, order: Tensor, units: Units | None, count: int, *, fill: bool) -> Tensor:
        """The first ``count`` of ``order`` that differ from ``units`` and each other; ``fill``: then any others."""
        order = order[: 4 * count]
        new = self._directions(candidates.pick(order).columns)
        alike = new.T @ new > _ALIKE
        alike |= new.T @ -new > _ALIKE
        free = torch.ones(len(order), dtype=torch.bool)
        if units is not None and len(units):
            free &= (self._directions(units.columns).T @ new).abs().amax(0) <= _ALIKE
        chosen: list[int] = []
        for position in range(len(order)):
            if len(chosen) < count and free[position] and not alike[position, chosen].any():
                chosen.append(position)
        if fill:
            chosen += [p for p in range(len(order)) if p not in set(chosen)][: count - len(chosen)]
        return order[chosen]

    def _directions(self, columns: SpikeDictionary) -> Tensor:
        """Maps of unit norm, a column for each unit; of those of many places, fewer rows tell them apart."""
        if self._own > 1:
            stride = min(self._own, -(-columns.shape[0] // _FEWEST))
            columns = columns.rows(torch.arange(0, columns.shape[0], stride))
        dense = columns.to_dense(torch.float32)
        if self.problem.fit_intercept:
            dense = dense - dense.mean(0)
        dense = dense.unflatten(1, (-1, self._own)).transpose(1, 2).flatten(0, 1)
        return dense / dense.norm(dim=0).clamp_min(_TINY)
