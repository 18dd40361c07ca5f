"""All spike trains that one neuron can produce on given inputs, whatever its weights."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor

from lightning_cvxsnn.patterns.dictionary import SpikeDictionary
from lightning_cvxsnn.patterns.neuron import Neuron

Kind = Literal["last", "mean", "sum"]
Array = NDArray[np.float64]

_THINNEST = 1e-7  # margins below it are ties
_DEEPEST = 700  # steps of all rows: each is a call within the last
_WIDEST = 1.0  # margins are cut at it, since cells may be unbounded
_EXACTLY = {"primal_feasibility_tolerance": 1e-9, "dual_feasibility_tolerance": 1e-9}


@dataclass(frozen=True, eq=False)
class AttainableTrains:
    """Every spike train that a neuron has for some weights, with a witness of each.

    Attributes:
        trains: ``[T, N, K]`` bool.
        weight: ``[K, F]`` float64, input weights of the witnesses.
        bias: ``[K]`` float64; zeros without a bias.
        margin: ``[K]`` float64: by how much, in the Euclidean norm of weights and bias, a witness may be off before any
            spike changes, at most 1. 0: the train exists on a tie only, and rounding may lose it.
    """

    trains: Tensor
    weight: Tensor
    bias: Tensor
    margin: Tensor

    def __len__(self) -> int:
        return self.trains.shape[2]

    def dictionary(self, kind: Kind) -> tuple[SpikeDictionary, Tensor]:
        """The distinct columns that a readout can receive, and which train is each one's widest witness.

        Args:
            kind: ``last``: the spike at the last step; ``mean`` and ``sum``: the number of spikes, times 1/T and 1.

        Returns:
            The dictionary ``[N, P]`` and int64 positions ``[P]`` among the trains.

        Raises:
            ValueError: For an unknown ``kind``.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"Found kind={kind!r}. Expected one of {list(get_args(Kind))}.")
        counts = self.trains[-1].to(torch.int32) if kind == "last" else self.trains.sum(0)
        columns, owner = torch.unique(counts, dim=1, return_inverse=True)
        widest = self.margin.sort(descending=True, stable=True).indices
        witness = torch.empty(columns.shape[1], dtype=torch.long)
        witness[owner[widest].flip(0)] = widest.flip(0)  # of several the last assignment holds: the widest
        scale = 1 / len(self.trains) if kind == "mean" else 1.0
        return SpikeDictionary.from_values(columns, scale), witness


def attainable_trains(neuron: Neuron, inputs: Tensor, *, bias: bool, max_trains: int = 100_000) -> AttainableTrains:
    r"""Enumerate the cells of the arrangement that the inputs and the reset history induce on weight space.

    Given the spikes so far, the voltage is linear in the weights, so each further step cuts the cell of weights that
    agree with them by one hyperplane. A depth-first search over rows and steps keeps the sides that are not empty: a
    linear programme each, unless the parent's witness decides. For threshold units the patterns are the cells of a
    hyperplane arrangement (Ergen et al., ICLR 2023, arXiv 2303.03382); the reset history is what spiking units add
    (Udupi, Yang, Zhai, arXiv 2605.08022).

    Args:
        neuron: Its constants; they are not part of the search.
        inputs: ``[T, N, F]``, finite.
        bias: Whether the input current has a bias.
        max_trains: The largest number of trains.

    Returns:
        The trains in the order of the search: no spike before spike, rows one after the other. Cells narrower than 1e-7
        in weight space count as ties; a train is kept if some weights have it with ties that fire.

    Raises:
        ValueError: If ``inputs`` is not a finite ``[T, N, F]`` with sizes of at least 1, has more than 700 steps of all
            rows together, there are too many trains, or the neuron has no linear form (KLIF).

    Example:
        >>> found = attainable_trains(Neuron(tau=2.0), torch.tensor([[[1.0]], [[1.0]]]), bias=False)
        >>> found.trains[:, 0].T.int()  # two equal inputs: never, second, both; not the first alone
        tensor([[0, 0],
                [0, 1],
                [1, 1]], dtype=torch.int32)
    """
    if inputs.dim() != 3 or 0 in inputs.shape:
        raise ValueError(f"Found inputs of shape {list(inputs.shape)}. Expected [T, N, F] with sizes of at least 1.")
    if not bool(inputs.isfinite().all()):
        raise ValueError("Found NaN or infinity in the inputs. Expected finite numbers.")
    steps = inputs.shape[0] * inputs.shape[1]
    if steps > _DEEPEST:
        raise ValueError(f"Found {steps} steps of all rows together. Expected at most {_DEEPEST}: fewer rows or steps.")
    data = inputs.detach().cpu().double().numpy()
    if bias:
        data = np.concatenate([data, np.ones((*data.shape[:2], 1))], 2)
    search = _Search(neuron, data, max_trains)
    search.descend(0, 0, *search.initial, np.zeros(data.shape[2]))
    trains = torch.tensor(np.array(search.trains)).unflatten(1, (data.shape[1], data.shape[0])).permute(2, 1, 0)
    weights = torch.tensor(np.array(search.weights))
    features = inputs.shape[2]
    return AttainableTrains(
        trains=trains,
        weight=weights[:, :features],
        bias=weights[:, features] if bias else torch.zeros(len(weights), dtype=torch.float64),
        margin=torch.tensor(search.margins, dtype=torch.float64),
    )


class _Search:
    """Depth first over rows and steps; the voltage is ``normal @ w + constant``."""

    def __init__(self, neuron: Neuron, data: Array, max_trains: int) -> None:
        self.form, self.threshold = neuron.linear_form(), neuron.v_threshold
        self.data, self.max_trains = data, max_trains
        self.initial = np.zeros(data.shape[2]), neuron.initial_voltage
        self.normals: list[Array] = []  # the present cell: normal @ w >= level where it fired, < where it did not
        self.levels: list[float] = []
        self.fired: list[bool] = []
        self.trains: list[list[bool]] = []
        self.weights: list[Array] = []
        self.margins: list[float] = []
        self.path: list[bool] = []

    def descend(self, row: int, step: int, normal: Array, constant: float, witness: Array) -> None:
        """Add all trains that continue the path, from a voltage before ``step`` and a witness of the path."""
        steps, rows, _ = self.data.shape
        if row == rows:
            self._add_train()
            return
        normal, constant = self.form.charge_affine(normal, constant, self.data[step, row])
        norm = float(np.linalg.norm(normal))
        height = float(normal @ witness) + constant - self.threshold
        for fires in (False, True):
            if norm < 1e-300:  # the weights do not matter
                if fires != (constant >= self.threshold):
                    continue
                inner: Array | None = witness
            else:
                self.normals.append(normal / norm)
                self.levels.append((self.threshold - constant) / norm)
                self.fired.append(fires)
                agrees = height > _THINNEST * norm if fires else height < -_THINNEST * norm
                inner = witness if agrees else self._inside()
            if inner is not None:
                self.path.append(fires)
                after = self.form.reset_affine(normal, constant) if fires else (normal, constant)
                following = (row, step + 1, *after) if step + 1 < steps else (row + 1, 0, *self.initial)
                self.descend(*following, inner)
                self.path.pop()
            if norm >= 1e-300:
                del self.normals[-1], self.levels[-1], self.fired[-1]

    def _inside(self) -> Array | None:
        """Weights of the cell, on its boundary if only ties that fire are in it; ``None`` if it is empty."""
        weights, margin = self._widest(np.ones(len(self.fired)))
        if abs(margin) <= _THINNEST:
            weights, margin = self._widest(1.0 - np.array(self.fired))
        return weights if margin > _THINNEST else None

    def _add_train(self) -> None:
        if len(self.trains) == self.max_trains:
            raise ValueError(
                f"Found more than {self.max_trains} attainable spike trains. Expected fewer: use fewer rows, steps or "
                "inputs, or raise max_trains."
            )
        weights, margin = np.zeros(self.data.shape[2]), _WIDEST
        if self.fired:
            weights, margin = self._widest(np.ones(len(self.fired)))
            if margin <= _THINNEST:
                weights, _ = self._widest(1.0 - np.array(self.fired))
                margin = 0.0
        self.trains.append(list(self.path))
        self.weights.append(weights)
        self.margins.append(margin)

    def _widest(self, wanted: Array) -> tuple[Array, float]:
        """Weights of the cell that are furthest from its planes with ``wanted`` 1, and that distance."""
        sign = np.where(self.fired, 1.0, -1.0)
        planes = np.column_stack([-sign[:, None] * np.array(self.normals), wanted])
        size = planes.shape[1] - 1
        result = linprog(
            np.eye(size + 1)[-1] * -1,
            A_ub=planes,
            b_ub=-sign * np.array(self.levels),
            bounds=[(None, None)] * size + [(-_WIDEST, _WIDEST)],
            method="highs",
            options=_EXACTLY,
        )
        if result.x is None:
            return np.zeros(size), -_WIDEST
        return result.x[:-1], float(result.x[-1])
