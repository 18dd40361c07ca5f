"""torchmetrics classes for spiking networks: activity, diversity, certified optimality, tokens and sequences.

They follow torchmetrics' conventions: ``update`` and ``compute``, ``forward`` for the batch, exact under DDP, ``plot``.
One trap: spikingjelly's ``functional.reset_net(module)`` resets *every* submodule, metrics included. Reset the spiking
part of a LightningModule, not the module.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors
from typing_extensions import override

from lightning_cvxsnn.convex import Loss, certificate
from lightning_cvxsnn.convex.inputs import check_rho
from lightning_cvxsnn.convex.losses import check_loss

__all__ = ["DeadUnits", "DistinctPatterns", "DualityGap", "FiringRate", "SequenceAccuracy", "TokenAccuracy"]

_BLOCK = 2**22  # entries whose int64 products are held at once


class _Metric(Metric):
    """What the classes share: a plot, and states whose size is known with the first rows."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        kwargs["dist_sync_fn"] = kwargs.get("dist_sync_fn") or _gather
        super().__init__(**kwargs)

    @override
    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Draw one value or several in a row.

        Args:
            val: What ``forward`` or ``compute`` gave, or a list of it; None: ``compute()``.
            ax: Axes to draw on; None: new ones.

        Returns:
            The figure and its axes.

        Raises:
            ModuleNotFoundError: Without matplotlib.
        """
        return self._plot(val, ax)


def _gather(state: Tensor, group: Any = None) -> list[Tensor]:
    """``gather_all_tensors`` for states that have no size yet in a process that has seen no rows."""
    states: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(states, (state.numel() > 0, state.dtype, tuple(state.shape)), group=group)
    _, dtype, shape = max(states, key=lambda s: (len(s[2]), s[0]))
    if state.dim() == 0:  # the neutral element, whatever the size
        state = state.expand(shape)
    elif state.numel() == 0:
        state = state.new_zeros((0, *shape[1:]), dtype=dtype)
    return gather_all_tensors(state, group)


def _steps_by_units(spikes: Tensor) -> Tensor:
    """``[T, N, *units]`` as ``[T * N, P]``, checked."""
    if spikes.dim() < 3:
        raise ValueError(
            f"spikes has shape {list(spikes.shape)}; expected [T, N, *units], time first. For one step, pass "
            "spikes[None]."
        )
    fine = spikes >= 0
    if spikes.is_floating_point():
        fine &= (spikes == spikes.round()) & spikes.isfinite()
    if not bool(fine.all()):
        raise ValueError(
            "spikes holds negative numbers, fractions, NaN or infinity; expected zeros and ones, or counts. Pass what "
            "the neurons send at each step, not its mean over time and not a membrane potential."
        )
    return spikes.detach().flatten(2).flatten(0, 1)


class FiringRate(_Metric):
    """Mean number of spikes per unit and time step.

    ``update(spikes)`` takes ``[T, N, *units]``: what spiking neurons send, zeros and ones (or counts) of any dtype,
    time first. Sums are exact integers, so the value does not depend on how the rows are cut into batches or processes.
    NaN without rows.

    Args:
        **kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: In ``update``, for another shape, negative numbers, fractions or NaN.

    Example:
        >>> rate = FiringRate()
        >>> rate.update(torch.tensor([[[1, 0]], [[1, 1]]]))  # two steps, one sample, two units
        >>> rate.compute()
        tensor(0.7500)
    """

    higher_is_better = None
    plot_lower_bound = 0.0

    spikes: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("spikes", "total"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, spikes: Tensor) -> None:
        """Count the spikes ``[T, N, *units]`` of one batch."""
        rows = _steps_by_units(spikes)
        self.spikes += rows.sum(dtype=torch.int64)
        self.total += rows.numel()

    @override
    def compute(self) -> Tensor:
        """Spikes per unit and step."""
        return self.spikes / self.total


class _PerUnit(_Metric):
    """Sums over the rows for each unit, in states that take their size from the first rows."""

    @staticmethod
    def _add(total: Tensor, of_batch: Tensor) -> Tensor:
        if total.dim() and total.shape != of_batch.shape:
            raise ValueError(
                f"spikes has {of_batch.shape[-1]} units and had {total.shape[-1]} before; expected the same layer in "
                "every update. Use one metric for each layer, and reset() between networks."
            )
        return total + of_batch


class DeadUnits(_PerUnit):
    """Share of units that carry no information: they never fire, or they fire at every step of every row.

    ``update(spikes)`` takes ``[T, N, *units]`` as `FiringRate` does. A unit is dead over *all* updates since the last
    reset, in all processes: one spike, or one pause, anywhere brings it to life. Each position of a feature map is a
    unit; to judge channels pass ``spikes.movedim(2, -1).flatten(1, -2)`` of ``[T, N, C, H, W]``. NaN without rows.

    Args:
        **kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: In ``update``, for another shape, negative numbers, fractions or NaN, or another number of units
            than before.

    Example:
        >>> dead = DeadUnits()
        >>> dead.update(torch.tensor([[[1, 0, 1, 0]], [[1, 0, 0, 0]]]))  # always, never, sometimes, never
        >>> dead.compute()
        tensor(0.7500)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    fired: Tensor
    steps: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("fired", "steps"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, spikes: Tensor) -> None:
        """Count for each unit the steps at which it fires."""
        rows = _steps_by_units(spikes)
        self.fired = self._add(self.fired, (rows > 0).sum(0))
        self.steps += len(rows)

    @override
    def compute(self) -> Tensor:
        """Share of dead units."""
        dead = ((self.fired == 0) | (self.fired == self.steps)).float().mean()
        return dead.where(self.steps > 0, torch.nan)


class DistinctPatterns(_PerUnit):
    """Number of distinct units: two are the same if they send the same at every step of every row.

    ``update(spikes)`` takes ``[T, N, *units]`` as `FiringRate` does. A linear readout cannot tell equal units apart:
    this is the width that a layer really has. To count what a readout over time sees, pass what it receives:
    ``spikes[-1:]``, or ``spikes.sum(0, keepdim=True)`` for a sum or mean; that is ``SolveReport.distinct``. A silent
    unit is a pattern too. 0 before the first update; 1 as long as there was no row, which alone tells units apart.

    Each unit has 128 bits of state, whatever the number of rows: two sums, modulo 2^64, of what it sends times a key
    that is a hash of all that the layer sends at that step of that row. So batches, their order, processes and the
    repeated rows of a distributed sampler make no difference. Equal units always have equal sums; two unequal ones are
    taken for equal with a probability of about 2^-128, more where the same row is seen many times (2^-88 for a row
    seen a million times).

    Args:
        **kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: In ``update``, for another shape, negative numbers, fractions or NaN, or another number of units
            than before.

    Example:
        >>> distinct = DistinctPatterns()
        >>> distinct.update(torch.tensor([[[1, 0, 1]], [[0, 0, 0]]]))
        >>> distinct.compute()
        tensor(2)
        >>> distinct.update(torch.tensor([[[1, 0, 0]], [[0, 0, 0]]]))  # tells the first unit from the third
        >>> distinct.compute()
        tensor(3)
    """

    higher_is_better = True
    plot_lower_bound = 0.0

    hashes: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("hashes", torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, spikes: Tensor) -> None:
        """Add each unit's share of the hashes."""
        rows = _steps_by_units(spikes)
        units = rows.shape[1]
        generator = torch.Generator().manual_seed(0)
        unit_keys = torch.randint(-(2**63), 2**63 - 1, (2, units), generator=generator).to(rows.device)
        hashes = torch.zeros(2, units, dtype=torch.int64, device=rows.device)
        for block in rows.split(max(_BLOCK // max(units, 1), 1)):
            block = block.long()
            for hashed, keys in zip(hashes, unit_keys, strict=True):
                hashed += (block * _mix((block * keys).sum(1))[:, None]).sum(0)
        self.hashes = self._add(self.hashes, hashes)

    @override
    def compute(self) -> Tensor:
        """Number of distinct units."""
        if self.hashes.dim() == 0:
            return torch.tensor(0, device=self.hashes.device)
        return torch.tensor(self.hashes.unique(dim=1).shape[1], device=self.hashes.device)


def _mix(z: Tensor) -> Tensor:
    """The finaliser of splitmix64, on int64 that wraps; its shifts are logical."""
    z = (z ^ z >> 30 & 2**34 - 1) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ z >> 27 & 2**37 - 1) * (0x94D049BB133111EB - 2**64)
    return z ^ z >> 31 & 2**33 - 1


class DualityGap(_Metric):
    """How far a readout can at most be from the best one over the same spikes, by `convex.certificate`.

    ``update(dictionary, targets, coef, intercept=None)`` takes rows of what the readout receives, ``[N, P]``, their
    targets (integer ``[N]``; floats ``[N, C]`` for squared) and the readout: ``coef`` is ``[P, C]``, the transpose of
    ``nn.Linear.weight``, ``intercept`` its bias ``[C]``, None if it has none. ``compute`` gives objective minus
    certified lower bound, over all rows of all updates and processes, as float64: never less than the true distance.

    The bound comes from the residuals alone. Near the optimum of cross-entropy and squared it is tight; far from it,
    and for hinge even at the optimum, it is valid but loose: to know the distance itself, `convex.solve` the programme.
    All rows are kept until ``reset``, as they come. NaN without rows.

    Args:
        loss: ``"cross_entropy"``, ``"hinge"`` or ``"squared"``.
        rho: L1 penalty on each coefficient, such as ``SolveReport.rho``; ``beta / sqrt(P)`` in the paper's units.
        **kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: For a bad loss or rho. In ``update``, for shapes that do not fit. In ``compute``, for bad labels,
            for NaN, and if the readout was not the same in all updates.

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

    def __init__(self, loss: Loss, rho: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss: Loss = loss
        self.rho = check_rho(rho)
        check_loss(loss)
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
            fit_intercept=len(intercept) > 0,
        )
        return torch.tensor(proof.gap, dtype=torch.float64, device=self.device)


class _Accuracy(_Metric):
    """Hits among what counts."""

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    hits: Tensor
    total: Tensor

    def __init__(self, ignore_index: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
            raise ValueError(f"ignore_index is {ignore_index!r}; expected an integer, or None.")
        self.ignore_index = ignore_index
        for name in ("hits", "total"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def _right_and_counted(self, preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Bool ``[N, L]`` twice: which tokens are right, and which count."""
        if preds.dim() == target.dim() + 1 and preds.is_floating_point():
            preds = preds.argmax(-1)
        if target.dim() != 2 or preds.shape != target.shape or preds.is_floating_point() or target.is_floating_point():
            raise ValueError(
                f"preds has shape {list(preds.shape)}, {preds.dtype}, and target {list(target.shape)}, {target.dtype}; "
                "expected integer tokens [N, L] or float scores [N, L, C], and integer targets [N, L]. Time-first "
                "scores [L, N, C] need transpose(0, 1)."
            )
        counted = torch.ones_like(target, dtype=torch.bool)
        if self.ignore_index is not None:
            counted = target != self.ignore_index
        return preds == target, counted

    @override
    def compute(self) -> Tensor:
        """Share of hits."""
        return self.hits / self.total


class TokenAccuracy(_Accuracy):
    """Share of tokens that are right, over all sequences; micro-averaged.

    ``update(preds, target)`` takes tokens ``[N, L]`` or scores ``[N, L, C]`` (their largest decides), and targets
    ``[N, L]``. Several outputs per step, such as digit and carry, take a metric each. NaN if nothing counts.

    Args:
        ignore_index: Targets that do not count, such as padding.
        **kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: For an ``ignore_index`` that is no integer. In ``update``, for other shapes or types.

    Example:
        >>> accuracy = TokenAccuracy(ignore_index=-1)
        >>> accuracy.update(torch.tensor([[1, 2, 0], [0, 1, 1]]), torch.tensor([[1, 2, -1], [0, 0, 1]]))
        >>> accuracy.compute()
        tensor(0.8000)
    """

    @override
    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count the tokens of one batch."""
        right, counted = self._right_and_counted(preds, target)
        self.hits += (right & counted).sum()
        self.total += counted.sum()


class SequenceAccuracy(_Accuracy):
    """Share of sequences of which every token that counts is right.

    Takes what `TokenAccuracy` takes. Sequences of which no token counts are left out (torchmetrics'
    ``MulticlassExactMatch`` takes them for right). NaN if nothing counts.

    Args:
        ignore_index: Targets that do not count, such as padding.
        **kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: For an ``ignore_index`` that is no integer. In ``update``, for other shapes or types.

    Example:
        >>> accuracy = SequenceAccuracy(ignore_index=-1)
        >>> accuracy.update(torch.tensor([[1, 2, 0], [0, 1, 1]]), torch.tensor([[1, 2, -1], [0, 0, 1]]))
        >>> accuracy.compute()
        tensor(0.5000)
    """

    @override
    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count the sequences of one batch."""
        right, counted = self._right_and_counted(preds, target)
        some = counted.any(1)
        self.hits += ((right | ~counted).all(1) & some).sum()
        self.total += some.sum()
