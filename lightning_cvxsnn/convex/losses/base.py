"""What the solvers ask of a loss, and what the certificate asks of it: two interfaces that share no code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cvxsnn.convex.matrix import Gathered

__all__ = ["LinearRayProof", "LossFunction", "LossProof", "QuadraticRayProof", "RayProof", "SmoothLoss", "mean_target"]


class LossFunction(ABC):
    """A loss as a function of outputs ``z [n, C]`` and encoded targets ``y [n, C]``, both float64.

    Attributes:
        name: What users call it.
        decides: Whether outputs are decisions between classes, which a positive factor on them does not change.
        takes_probabilities: Whether targets may be probabilities of the classes.
        follows_targets: Whether the loss depends on the differences of outputs and targets only.
    """

    name: ClassVar[str]
    follows_targets: ClassVar[bool] = False
    decides: ClassVar[bool] = True
    takes_probabilities: ClassVar[bool] = False

    def trained_factors(self, num_outputs: int) -> tuple[float, ...]:
        """Multiples of the loss that trainings minimise under its name."""
        return (1.0,)

    def coupled(self, num_outputs: int) -> bool:
        """Whether an output's loss depends on the other outputs."""
        return False

    @abstractmethod
    def encode(self, targets: Tensor, num_outputs: int | None = None) -> Tensor:
        """Check targets and encode them.

        Args:
            targets: As the user has them.
            num_outputs: Number of outputs ``C``; ``None``: as many as the targets ask for.

        Returns:
            Float64 ``[n, C]``.

        Raises:
            ValueError: Wrong shape or dtype, labels out of range, NaN or infinity.
        """

    @abstractmethod
    def values(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        """Loss of each row, ``[n]``."""

    @abstractmethod
    def gradient(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        """Gradient of each row's loss in its outputs, ``[n, C]``; a subgradient where there are several."""

    @abstractmethod
    def constant(self, encoded: Tensor, weight: Tensor) -> Tensor:
        """Outputs ``[C]`` of the best constant predictor; finite, also where the infimum is not attained."""

    def constant_dual(self, encoded: Tensor, weight: Tensor, fit_intercept: bool) -> Tensor:
        """Dual point ``[n, C]`` of the best constant predictor, of zero outputs if no intercept is fitted."""
        best = self.constant(encoded, weight) if fit_intercept else torch.zeros_like(encoded[0])
        return -weight[:, None] * self.gradient(best.expand_as(encoded), encoded)

    def open_outputs(self, encoded: Tensor) -> Tensor:
        """Indices of the outputs whose best answer is more than a constant, if an intercept is fitted."""
        return torch.arange(encoded.shape[1], device=encoded.device)

    def trivial_intercepts(self, encoded: Tensor, weight: Tensor, others: Tensor | None, slack: float) -> Tensor:
        """Intercepts ``[C]`` of the outputs that are not open, which cost at most ``slack`` together.

        Args:
            encoded: ``[n, C]``, rows of positive weight.
            weight: ``[n]``.
            others: Outputs ``[n, k]`` of the open ones, if outputs are coupled and some are open.
            slack: Positive.
        """
        raise NotImplementedError(f"All outputs of {self.name!r} are open.")

    @abstractmethod
    def expression(self, cvxpy: Any, outputs: Any, encoded: Any, weight: Any) -> Any:
        """The weighted sum of the losses as CVXPY reads it.

        Args:
            cvxpy: The module.
            outputs: Its expression ``[n, C]``.
            encoded: Numpy array ``[n, C]``.
            weight: Numpy array ``[n]``.
        """


def mean_target(encoded: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean ``[C]`` of encoded targets; 0 without any weight."""
    return weight @ encoded / weight.sum().clamp_min(torch.finfo(torch.float64).tiny)


class SmoothLoss(LossFunction):
    """A loss with a Lipschitz continuous gradient: what Newton's method asks for.

    Attributes:
        quadratic: Whether the curvature is 1 everywhere, so that all outputs and iterations share one Hessian.
    """

    quadratic: ClassVar[bool] = False

    @abstractmethod
    def curvature(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        """Second derivative of each row's loss in each of its outputs, ``[n, C]``, of outputs that are not coupled."""

    def local(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        """What the second derivatives of each row's loss are made of, ``[n, C]``."""
        return self.curvature(outputs, encoded)

    def bend(self, local: Tensor, change: Tensor) -> Tensor:
        """The second derivative of each row's loss applied to a change of its outputs, ``[n, C]``."""
        return local * change

    def own_bend(self, local: Tensor) -> Tensor:
        """The second derivatives of each row's loss in each output alone, ``[n, C]``."""
        return local

    def mean_bend(self, local: Tensor, weight: Tensor) -> Tensor:
        """The second derivatives of all rows, weighted and summed, ``[C, C]``."""
        return torch.diag(weight @ local)

    def one_output(self, outputs: Tensor, output: int) -> Tensor:
        """One output ``[n, 1]``, such that its loss given the others is, but for a constant, that of one output."""
        return outputs[:, output, None]

    def joint_hessian(self, matrix: Gathered, weight: Tensor, local: Tensor, columns: Tensor, owner: Tensor) -> Tensor:
        """Hessian of the weighted loss in some coefficients of coupled outputs, ``[k, k]``, in the dtype of ``weight``.

        Args:
            matrix: ``[n, p]``.
            weight: ``[n]``.
            local: What :meth:`local` gives, ``[n, C]``.
            columns: ``[k]``, the column of each coefficient.
            owner: ``[k]``, its output; ascending.
        """
        raise NotImplementedError(f"Outputs of {self.name!r} are not coupled.")


class LossProof(ABC):
    """The certificate's own arithmetic for a loss: nothing of :class:`LossFunction` is used in it.

    ``scale [n, 1]`` is ``s_i / n``: the weight of a row's loss in the programme.
    """

    def near_zero(self, intercept: Tensor) -> Tensor:
        """Intercepts ``[C]`` of the same losses, whose sums with outputs lose the fewest digits."""
        return intercept

    @abstractmethod
    def values(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        """Loss of each row, ``[n]``."""

    @abstractmethod
    def residuals(self, outputs: Tensor, encoded: Tensor, scale: Tensor) -> Tensor:
        """The dual point ``[n, C]`` that belongs to outputs."""

    @abstractmethod
    def repair(self, point: Tensor, encoded: Tensor, scale: Tensor, fit_intercept: bool) -> Tensor:
        """Move a dual point into the loss's domain and, if an intercept is fitted, to ``sum_i U_i = 0``."""

    @abstractmethod
    def ray(self, point: Tensor, encoded: Tensor, weight: Tensor) -> RayProof:
        """The dual values of the multiples of a repaired point.

        Args:
            point: ``[n, C]``.
            encoded: ``[n, C]``.
            weight: ``[n]`` sample weights ``s_i``.
        """


class RayProof(ABC):
    """Dual values of a point's multiples: concave in the factors ``[C]``, or in one ``[1]`` that all outputs share.

    Attributes:
        best: The factors with the largest value, within what the loss allows.
    """

    best: Tensor

    @abstractmethod
    def value(self, factor: Tensor) -> float:
        """The value at some factors, summed over outputs."""

    @abstractmethod
    def slopes(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        """The derivative in each factor, and how fast it falls."""


class QuadraticRayProof(RayProof):
    """``linear f - curvature f^2 / 2``, each ``[C]``, for all factors."""

    def __init__(self, linear: Tensor, curvature: Tensor) -> None:
        self.linear, self.curvature = linear, curvature
        self.best = torch.where(curvature > 0, linear / curvature, 0.0)

    @override
    def value(self, factor: Tensor) -> float:
        return float((factor * self.linear - factor.square() * self.curvature / 2).sum())

    @override
    def slopes(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear - factor * self.curvature, self.curvature


class LinearRayProof(RayProof):
    """``linear f``, ``[C]``, for factors up to 1."""

    def __init__(self, linear: Tensor) -> None:
        self.linear, self.best = linear, torch.ones_like(linear)

    @override
    def value(self, factor: Tensor) -> float:
        return float((factor * self.linear).sum())

    @override
    def slopes(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear, torch.zeros_like(self.linear)
