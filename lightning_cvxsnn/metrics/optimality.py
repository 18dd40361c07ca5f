"""How far a readout is from the best one, certified."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat
from typing_extensions import override

from lightning_cvxsnn.convex import Loss, certificate
from lightning_cvxsnn.convex.inputs import check_ratio, check_rho
from lightning_cvxsnn.convex.losses import loss_named
from lightning_cvxsnn.metrics.base import SpikingMetric


class DualityGap(SpikingMetric):
    """How far a readout can at most be from the best one over the same spikes, by `convex.certificate`.

    ``update(dictionary, targets, coef, intercept=None)`` takes rows of what the readout receives, ``[N, P]``, their
    targets (integer ``[N]``; floats ``[N, C]`` for squared) and the readout: ``coef`` is ``[P, C]``, the transpose of
    ``nn.Linear.weight``, ``intercept`` its bias ``[C]``, None if it has none. ``compute`` gives objective minus
    certified lower bound, over all rows of all updates and processes, as float64: never less than the true distance.

    The bound comes from the residuals alone. Near the optimum it is tight, but for hinge; far from it, and for hinge
    even at the optimum, it is valid but loose: to know the distance itself, `convex.solve` the programme.
    All rows are kept until ``reset``, as they come. NaN without rows.

    Args:
        loss: ``"cross_entropy"``, ``"hinge"``, ``"squared"`` or ``"squared_hinge"``.
        rho: Strength of the penalty, such as ``SolveReport.rho``; ``beta / sqrt(P)`` in the paper's units.
        l1_ratio: Share of the L1 norm in the penalty: 1 is L1, 0 is ridge.
        **kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: For a bad loss, rho or l1_ratio. In ``update``, for shapes that do not fit. In ``compute``, for bad
            labels, for NaN, and if the readout was not the same in all updates.

    Example:
        >>> gap = DualityGap("squared", rho=0.25)
        >>> gap.update(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [0.0]]), coef=torch.tensor([[0.5]]))
        >>> round(gap.compute().item(), 12)  # 0.5 is optimal
        0.0
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    dictionary: list[Tensor]
    targets: list[Tensor]
    readout: list[Tensor]

    def __init__(self, loss: Loss, rho: float, l1_ratio: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss: Loss = loss
        self.rho, self.l1_ratio = check_rho(rho), check_ratio(l1_ratio)
        loss_named(loss)  # raises for an unknown name
        for name in ("dictionary", "targets", "readout"):
            self.add_state(name, [], dist_reduce_fx="cat")

    @override
    def update(self, dictionary: Tensor, targets: Tensor, coef: Tensor, intercept: Tensor | None = None) -> None:
        """Keep the rows of one batch, and the readout."""
        if dictionary.dim() != 2 or len(targets) != len(dictionary):
            raise ValueError(
                f"dictionary has shape {list(dictionary.shape)} and targets {list(targets.shape)}; expected [N, P] and "
                "one target for each of its rows."
            )
        if coef.dim() != 2 or len(coef) != dictionary.shape[1]:
            raise ValueError(
                f"coef has shape {list(coef.shape)}; expected [{dictionary.shape[1]}, C], such as readout.weight.T."
            )
        if intercept is not None and intercept.shape != coef.shape[1:]:
            raise ValueError(f"intercept has shape {list(intercept.shape)}; expected [{coef.shape[1]}].")
        self.dictionary.append(dictionary.detach())
        self.targets.append(targets.detach())
        readout = coef if intercept is None else torch.cat([coef, intercept[None]])
        self.readout.append(readout.detach().double()[None])

    @override
    def compute(self) -> Tensor:
        """Objective at the readout minus the lower bound."""
        if not len(self.dictionary):
            return torch.tensor(torch.nan, dtype=torch.float64, device=self.device)
        dictionary, readouts = dim_zero_cat(self.dictionary), dim_zero_cat(self.readout)
        if not torch.allclose(readouts, readouts[:1].expand_as(readouts), rtol=0, atol=0, equal_nan=True):
            raise ValueError(
                "The readout changed between updates; a duality gap is about one readout. Expected all rows with the "
                "same weights: update in validation, and reset() after each training step."
            )
        coef, intercept = readouts[0].tensor_split([dictionary.shape[1]])
        proof = certificate(
            dictionary,
            dim_zero_cat(self.targets),
            coef,
            intercept[0] if len(intercept) else None,
            loss=self.loss,
            rho=self.rho,
            l1_ratio=self.l1_ratio,
            fit_intercept=len(intercept) > 0,
        )
        return torch.tensor(proof.gap, dtype=torch.float64, device=self.device)
