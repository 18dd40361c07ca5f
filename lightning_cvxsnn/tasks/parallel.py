"""The network of Udupi, Yang, Zhai, arXiv 2605.08022: `ParallelSNN`."""

from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from typing_extensions import override

from lightning_cvxsnn.network import LIF, reset_neurons
from lightning_cvxsnn.tasks.classifier import Classifier

#: A constant of all branches, or the range that each branch draws its own from.
Constant = float | tuple[float, float]

#: What the readout sees of the last layers.
Reduction = Literal["last", "mean", "membrane", "voltage", "all"]


class ParallelSNN(Classifier):
    """K branches side by side, each a stack of linear and LIF layers, and a linear readout of all their last layers.

    The network of Udupi, Yang, Zhai, arXiv 2605.08022 (2026). Its neurons are those of the paper by default: retained
    fraction 0.99, ``decay_input=False``, soft reset, threshold 1. Given a range, each branch draws its constants from
    it; they are buffers, which ``state_dict`` keeps. Witnesses ``pool`` and ``priced`` replace whole branches, and with
    them their constants.

    Args:
        in_features: Values per time step.
        width: Units of each hidden LIF layer but the last, all branches together.
        last_width: Units of the last LIF layer, all branches together.
        depth: Layers, the readout included, at least 2.
        branches: K; it divides the widths.
        num_classes: Number of classes.
        tau: Membrane time constant in steps, above 1. A range ``(low, high)``: branches draw 1/tau uniformly.
        v_threshold: The voltage at which neurons fire, above 0. A range ``(low, high)``: branches draw it uniformly.
        reset: ``"soft"``: the threshold is subtracted; ``"hard"``: to 0; ``"mixed"``: branches draw one of them.
        decay_input: Whether the input is divided by ``tau`` too.
        reduction: What the readout sees of the last layers: spikes of the ``last`` step, their ``mean`` over time, or
            ``membrane``, ``1[h[T] >= 0]`` of the voltage h after the last charge (the paper's); ``voltage``: h[T]
            itself, what an analog readout sees; ``all``: the spikes of each step, for a target per step.
        loss: Trained by surrogate gradients: ``"cross_entropy"``, or ``"hinge"``, one class against the rest.
        lr: Learning rate of Adam.
        bias: Whether hidden layers have biases; the paper's have none.

    Shapes:
        Input ``[N, T, in_features]``, output (logits) ``[N, num_classes]``, or ``[N, T, num_classes]`` for ``all``.

    Raises:
        MisconfigurationException: If a size or constant is out of range.

    Example:
        >>> net = ParallelSNN(in_features=2, width=8, last_width=16, depth=3, branches=2, tau=(1.05, 100.0))
        >>> net(torch.rand(4, 6, 2)).shape, "branches.1.3.tau" in net.state_dict()
        (torch.Size([4, 2]), True)
    """

    def __init__(
        self,
        in_features: int = 2,
        width: int = 500,
        last_width: int = 1000,
        depth: int = 5,
        branches: int = 2,
        num_classes: int = 2,
        tau: Constant = 100.0,
        v_threshold: Constant = 1.0,
        reset: Literal["soft", "hard", "mixed"] = "soft",
        decay_input: bool = False,
        reduction: Reduction = "last",
        loss: Literal["cross_entropy", "hinge"] = "cross_entropy",
        lr: float = 1e-3,
        bias: bool = True,
    ) -> None:
        super().__init__(num_classes, lr, loss)
        self.save_hyperparameters()
        _check_sizes(depth, branches, width, last_width)
        self.widths = [in_features, *[width // branches] * (depth - 2), last_width // branches]
        self.tau = _range("tau", tau, 1.0)
        self.v_threshold = _range("v_threshold", v_threshold, 0.0)
        for name, value, allowed in (
            ("reset", reset, ("soft", "hard", "mixed")),
            ("reduction", reduction, get_args(Reduction)),
            ("loss", loss, ("cross_entropy", "hinge")),
        ):
            if value not in allowed:
                raise MisconfigurationException(f"Invalid value {name}={value!r}. Expected one of {list(allowed)}.")
        self.reset = reset
        self.decay_input = decay_input
        self.reduction = reduction
        self.bias = bias
        self.branches = nn.ModuleList([self.draw_branch() for _ in range(branches)])
        self.readout = nn.Linear(last_width, num_classes)

    def draw_branch(self) -> nn.Sequential:
        """A new branch: weights from torch's default initialisation, constants from the network's ranges."""
        inverse, threshold, coin = torch.rand(3, dtype=torch.float64).tolist()
        (low, high), (least, most) = self.tau, self.v_threshold
        tau = low if low == high else 1 / ((1 - inverse) / low + inverse / high)
        v_threshold = least + threshold * (most - least)
        soft = coin < 0.5 if self.reset == "mixed" else self.reset == "soft"
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(self.widths, self.widths[1:], strict=False):
            layers.append(nn.Linear(fan_in, fan_out, bias=self.bias))
            layers.append(LIF(tau, v_threshold, None if soft else 0.0, self.decay_input))
        return nn.Sequential(*layers)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Logits of sequences ``[N, T, in_features]``, see the class."""
        reset_neurons(self.branches)
        logits = self._read(x.transpose(0, 1))
        reset_neurons(self.branches)
        return logits.transpose(0, 1) if self.reduction == "all" else logits

    def features(self, branch: nn.Module, steps: Tensor) -> Tensor:
        """What the readout sees of one branch after ``steps`` ``[T, N, in_features]`` more, from its present state.

        Returns:
            ``[N, last_width / branches]``, for ``all`` with T in front.
        """
        spikes = branch(steps)
        if self.reduction in ("membrane", "voltage"):
            last: Any = branch[-1]  # type: ignore[index]
            return last.charged if self.reduction == "voltage" else last.surrogate_function(last.charged)
        if self.reduction == "all":
            return spikes
        return spikes[-1] if self.reduction == "last" else spikes.mean(0)

    def _read(self, steps: Tensor) -> Tensor:
        return self.answer(self._seen(steps))

    def _seen(self, steps: Tensor) -> Tensor:
        """What the readout sees of all branches."""
        return torch.cat([self.features(branch, steps) for branch in self.branches], -1)

    def answer(self, features: Tensor) -> Tensor:
        """Logits of what the readout sees, ``[..., last_width]``."""
        return self.readout(features)


def _check_sizes(depth: int, branches: int, width: int, last_width: int) -> None:
    for name, value, least in (("depth", depth, 2), ("branches", branches, 1)):
        if value < least:
            raise MisconfigurationException(f"Invalid value {name}={value!r}. Expected an integer >= {least}.")
    for name, value in (("width", width), ("last_width", last_width)):
        if value < branches or value % branches:
            raise MisconfigurationException(
                f"Invalid value {name}={value!r}. Expected a multiple of branches={branches}: each has its share."
            )


def _range(name: str, value: Constant, above: float) -> tuple[float, float]:
    """A constant as a range ``(low, high)``, checked."""
    low, high = value if isinstance(value, (tuple, list)) else (value, value)
    if not above < low <= high < float("inf"):
        raise MisconfigurationException(
            f"Invalid value {name}={value!r}. Expected a finite number above {above:g}, or a range (low, high) of them."
        )
    return float(low), float(high)
