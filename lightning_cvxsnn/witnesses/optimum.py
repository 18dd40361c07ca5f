"""The optimum over all weights of one hidden layer: the convex programme over all attainable patterns."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_cvxsnn.convex import Loss, Solution, solve
from lightning_cvxsnn.patterns import Neuron, SpikeDictionary
from lightning_cvxsnn.witnesses.attainable import Kind, attainable_trains


@dataclass(frozen=True, eq=False)
class NetworkOptimum:
    """The optimum over every network of one hidden layer with these neuron constants, of any width.

    Attributes:
        solution: Over the dictionary of all attainable columns. ``solution.dual`` bounds the objective of every such
            network from below; ``solution.primal`` is attained by the one of :attr:`weight`.
        dictionary: ``[N, P]``, the attainable columns.
        weight: ``[k, F]`` float64, hidden weights of the units that the solution uses.
        bias: ``[k]`` float64; zeros without a bias.
        margin: ``[k]`` float64, see `AttainableTrains`.
        readout: ``[C, k]`` float64, as ``nn.Linear`` stores it; its bias is ``solution.intercept``.
        trains: Number of attainable spike trains.
        scope: ``"network"``: the certificate is about all weights of the architecture, not about given columns.
    """

    solution: Solution
    dictionary: SpikeDictionary
    weight: Tensor
    bias: Tensor
    margin: Tensor
    readout: Tensor
    trains: int
    scope: Literal["network"] = "network"


def network_optimum(
    neuron: Neuron,
    inputs: Tensor,
    targets: Tensor,
    *,
    kind: Kind,
    loss: Loss,
    rho: float,
    bias: bool,
    fit_intercept: bool,
    num_outputs: int | None = None,
    gap_tolerance: float = 1e-6,
    max_trains: int = 100_000,
) -> NetworkOptimum:
    """Solve ``min (1/N) sum_i loss(f(x_i), y_i) + rho sum |W|`` globally, over hidden weights and readout.

    ``f(x) = sum_j W_j d_j(x) + b`` with one hidden layer of spiking units ``d_j``, as many as it takes. All columns
    that a unit can have are enumerated, so this is for small problems: some tens of rows times steps, two or three
    inputs.

    Args:
        neuron: Constants of the hidden units.
        inputs: ``[T, N, F]``.
        targets: Integer labels ``[N]``, or floats ``[N, C]`` for the squared loss.
        kind: What the readout receives: ``last``, ``mean`` or ``sum`` of the spikes over time.
        loss: See :func:`~lightning_cvxsnn.convex.solve`.
        rho: Penalty on each readout weight; hidden weights are not penalised.
        bias: Whether hidden units have a bias.
        fit_intercept: Whether the readout has a bias, which is not penalised.
        num_outputs: See :func:`~lightning_cvxsnn.convex.solve`.
        gap_tolerance: See :func:`~lightning_cvxsnn.convex.solve`.
        max_trains: Refuse beyond this many spike trains.

    Returns:
        The optimum, certified, and a network that attains it.

    Raises:
        ValueError: For inputs that :func:`~lightning_cvxsnn.witnesses.attainable_trains` or
            :func:`~lightning_cvxsnn.convex.solve` refuses.

    Source: threshold networks as a convex programme over all their patterns: Ergen et al., ICLR 2023 (arXiv
    2303.03382); spiking units: Udupi, Yang, Zhai, arXiv 2605.08022.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]])  # XOR, shown for one step
        >>> y = torch.tensor([0, 1, 1, 0])
        >>> best = network_optimum(Neuron(), x, y, kind="last", loss="hinge", rho=0.01, bias=True, fit_intercept=True)
        >>> best.trains, round(best.solution.primal, 6), best.solution.converged
        (14, 0.04, True)
    """
    attainable = attainable_trains(neuron, inputs, bias=bias, max_trains=max_trains)
    dictionary, witness = attainable.dictionary(kind)
    solution = solve(
        dictionary, targets.cpu(), loss=loss, rho=rho, fit_intercept=fit_intercept, num_outputs=num_outputs,
        gap_tolerance=gap_tolerance,
    )  # fmt: skip
    used = (solution.coef != 0).any(1)
    units = witness[used]
    return NetworkOptimum(
        solution=solution,
        dictionary=dictionary,
        weight=attainable.weight[units],
        bias=attainable.bias[units],
        margin=attainable.margin[units],
        readout=solution.coef[used].T.contiguous(),
        trains=len(attainable),
    )
