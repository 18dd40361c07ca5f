"""The convex programme of one network on its training rows: captured in one pass, split for the guard."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_cvxsnn.convex import Loss, Point, Solution, certificate, mean_loss, rho_max, solve
from lightning_cvxsnn.network.isolation import undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.quick import quick_neurons
from lightning_cvxsnn.network.rows import TrainingRows, rows_of
from lightning_cvxsnn.network.spikes import Observed, join, observe
from lightning_cvxsnn.network.targets import row_targets, row_weights
from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.runtime.memory import check_memory
from lightning_cvxsnn.runtime.progress import Progress
from lightning_cvxsnn.runtime.rng import isolate_rng

_HELD_OUT = 5  # one sample in five judges
_SAMPLED = 256  # rows on which units are looked at one by one


@dataclass(frozen=True)
class Penalty:
    """What a readout's weights cost.

    Attributes:
        beta: In the paper's units, ``rho * sqrt(columns)``.
        l1_ratio: Share of the L1 term: 1 L1, 0 ridge.
    """

    beta: float
    l1_ratio: float

    def rho(self, columns: int) -> float:
        """In the programme's units."""
        return self.beta / columns**0.5


@dataclass(frozen=True)
class CapturedProgramme:
    """The programme over the captured rows, and what the network answered on them.

    Attributes:
        dictionary: ``[n, P]``.
        targets: int64 ``[n]``, or float64 ``[n, C]`` for ``squared``.
        weights: float64 ``[n]``.
        outputs: float32 ``[n, C]``, the network's own answers.
        held_out: Bool ``[n]``: the rows that judge, one sample in five.
        loss: Loss of the programme.
        num_outputs: C.
        fit_intercept: Whether the readout has a bias.
    """

    dictionary: SpikeDictionary
    targets: Tensor
    weights: Tensor
    outputs: Tensor
    held_out: Tensor
    loss: Loss
    num_outputs: int
    fit_intercept: bool

    @property
    def options(self) -> dict[str, Any]:
        """What every function of ``convex`` wants to know."""
        return {"loss": self.loss, "fit_intercept": self.fit_intercept}

    def solve(self, penalty: Penalty, tolerance: float, init: Point | None, rows: Tensor | None = None) -> Solution:
        """Solve over ``rows`` (bool mask; None: all), from ``init``."""
        part = self if rows is None else self.subset(rows)
        return solve(
            part.dictionary,
            part.targets,
            **self.options,
            rho=penalty.rho(part.dictionary.shape[1]),
            l1_ratio=penalty.l1_ratio,
            num_outputs=self.num_outputs,
            sample_weight=part.weights,
            init=init,
            gap_tolerance=tolerance,
        )

    def gap_at(
        self, coef: Tensor, intercept: Tensor | None, solution: Solution, penalty: Penalty, rows: Tensor | None
    ) -> float:
        """Objective at a stored readout minus the best dual known."""
        part = self if rows is None else self.subset(rows)
        proof = certificate(
            part.dictionary,
            part.targets,
            coef,
            intercept,
            **self.options,
            rho=penalty.rho(part.dictionary.shape[1]),
            l1_ratio=penalty.l1_ratio,
            sample_weight=part.weights,
            dual_point=solution.dual_point,
        )
        return proof.primal - max(proof.dual, solution.dual)

    def held_out_loss(self, outputs: Tensor) -> float:
        """Unpenalised loss of ``outputs`` ``[held-out rows, C]``."""
        return mean_loss(
            outputs, self.targets[self.held_out], loss=self.loss, sample_weight=self.weights[self.held_out]
        )

    def share_right(self, outputs: Tensor) -> float:
        """Share, by weight, of held-out rows that ``outputs`` ``[held-out rows, C]`` decide rightly.

        The largest of several outputs decides, the first of equals; one output decides by its sign.
        """
        decided = outputs.argmax(1) if self.num_outputs > 1 else (outputs[:, 0] > 0).long()
        targets, weights = self.targets[self.held_out], self.weights[self.held_out]
        right = (decided == (targets if targets.dim() == 1 else targets.argmax(1))).double()
        return float(weights @ right / weights.sum())

    def largest_rho(self, rows: Tensor) -> float:
        """The penalty on ``rows`` (bool mask) above which no unit is used."""
        part = self.subset(rows)
        return rho_max(
            part.dictionary,
            part.targets,
            **self.options,
            num_outputs=self.num_outputs,
            sample_weight=part.weights,
        )

    def cancels(self, coef: Tensor) -> bool:
        """Whether answers ``[P, C]`` are small differences of what units say: each on its own, they would vary more.

        Spikes that training moves change such answers altogether.
        """
        rows = torch.randperm(len(self.targets), generator=torch.Generator().manual_seed(0))[:_SAMPLED]
        spikes = self.dictionary.rows(rows).to_dense(coef.dtype)
        spikes = spikes - spikes.mean(0)
        together = (spikes @ coef).square().sum()
        return bool((spikes.square().sum(0) @ coef.square()).sum() > together)

    def subset(self, rows: Tensor) -> "CapturedProgramme":
        """The programme over some of its rows, a bool mask ``[n]`` or positions; rows that judge still do."""
        return replace(
            self,
            dictionary=self.dictionary.rows(rows),
            targets=self.targets[rows],
            weights=self.weights[rows],
            outputs=self.outputs[rows],
            held_out=self.held_out[rows],
        )


def capture_programme(
    network: Network, *, loss: Loss, seed: int, progress: Progress, stage: str, rows: TrainingRows | None = None
) -> CapturedProgramme | None:
    """Capture the programme in one pass over the training rows. Call it inside ``undisturbed``.

    Each process passes over its share of the batches; rank 0 gets the programme of all, the others ``None``.

    Args:
        network: The network.
        loss: Loss of the programme.
        seed: Seed of the held-out samples.
        progress: Shows the pass.
        stage: What to call it.
        rows: Other rows, all of which judge and none of which is fitted; None: the training rows.

    Raises:
        MisconfigurationException: If targets or weights do not fit the outputs, there are fewer than five samples, or
            the programme does not fit into memory.
        ValueError: If the data holds NaN or infinity.
    """
    judges, readout = rows is not None, network.readout
    rows = network.rows if rows is None else rows
    reduction, num_outputs = readout.reduction, readout.module.out_features
    targets: list[Tensor] = []
    weights: list[Tensor] = []
    share = rows.share()  # in the batches of training: hooks and weights may depend on them
    with progress(stage, len(share)) as advance:

        def inputs() -> Iterator[Any]:
            for batch in share:
                y, weight = readout.pick(batch.y), readout.pick(batch.weight)
                targets.append(row_targets(y, reduction, loss=loss, num_outputs=num_outputs))
                weights.append(row_weights(weight, len(targets[-1]), reduction))
                yield batch.x
                advance()

        observed = observe(network.module, readout, inputs(), partial(_rows_to_hold, network, rows, share))
    part = observed and (observed, torch.cat(targets), torch.cat(weights))
    parts = rows.ranks.collect(part, torch.device("cpu"))
    if parts is None:
        return None
    parts = [part for part in parts if part is not None]
    captured = join([part[0] for part in parts], reduction)
    y, weight = (torch.cat([part[k] for part in parts]) for k in (1, 2))
    n = captured.dictionary.shape[0]
    if len(y) != n:
        raise MisconfigurationException(
            f"The network gives {n} outputs for the training rows and there are {len(y)} targets. Expected one "
            "target per output."
        )
    if not bool(weight.any()):
        raise MisconfigurationException("All sample weights are zero. Expected some above zero from `convex_batch`.")
    if captured.draws > 1:
        rank_zero_warn(
            f"The network's encoder is random: two passes over one batch differ. Each row of the dictionary is the "
            f"average of {captured.draws} draws, and the certificate is about these averages."
        )
    samples = n // reduction.rows_per_sample
    held_out = torch.ones(samples, dtype=torch.bool) if judges else _held_out(rows.sample_ids(samples), seed)
    return CapturedProgramme(
        dictionary=captured.dictionary,
        targets=y,
        weights=weight,
        outputs=captured.outputs,
        held_out=held_out.repeat_interleave(reduction.rows_per_sample),
        loss=loss,
        num_outputs=num_outputs,
        fit_intercept=readout.module.bias is not None,
    )


def _rows_to_hold(network: Network, rows: TrainingRows, share: TrainingRows, first: Tensor) -> int:
    """Dictionary rows of this process's share, given those of its first batch; refuses what does not fit memory."""
    reduction = network.readout.reduction
    each = reduction.rows_per_sample
    mine, everyones = (part.samples(len(first) // each) * each for part in (share, rows))
    solved = everyones if rows.ranks.rank == 0 else mine
    alike = join([Observed(first, first, 1.0, 1)], reduction).dictionary.counts  # rates become counts
    num_outputs = network.readout.module.out_features
    check_memory(solved, first.shape[1], num_outputs, first.element_size(), alike.element_size())
    return mine


def _held_out(sample_ids: Tensor, seed: int) -> Tensor:
    """Bool mask of the samples that judge; a sample that a sampler repeats is fitted or judges, never both."""
    samples = int(sample_ids.max()) + 1
    if samples < _HELD_OUT:
        raise MisconfigurationException(
            f"The training data has {samples} different samples. Expected at least {_HELD_OUT}: one in five judges."
        )
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    held_out = torch.zeros(samples, dtype=torch.bool)
    held_out[order[: samples // _HELD_OUT]] = True
    return held_out[sample_ids]


def spike_dictionary(
    model: nn.Module, dataloader: Any, *, readout: str | None = None, max_samples: int | None = None, seed: int = 0
) -> SpikeDictionary:
    """What the readout of ``model`` receives on the training rows; nothing is changed.

    Args:
        model: A spiking network. It is asked in eval mode, with the batch-norm statistics it has.
        dataloader: A ``DataLoader`` (or list) of training batches ``(x, y)``.
        readout: Dotted name of the readout; None: find it.
        max_samples: Use this many samples, a random subset fixed by ``seed``; None: all.
        seed: Seed of the subset and of augmentations.

    Returns:
        The dictionary, on the CPU: one row per sample (per sample and step where the network answers at each step), in
        the order of the data, and one column per unit.

    Raises:
        MisconfigurationException: If the network or the data is not as `ConvexReconstruction` needs it.
        ValueError: If the data holds NaN or infinity.

    Example:
        >>> from lightning_cvxsnn import DigitsDataModule, LitSNN, spike_dictionary
        >>> data = DigitsDataModule()
        >>> data.setup("fit")
        >>> spike_dictionary(LitSNN(hidden=[32]), data.train_dataloader(), max_samples=100).shape
        torch.Size([100, 32])
    """
    network = Network(model, rows_of(model, dataloader, max_samples=max_samples, seed=seed), readout)
    with isolate_rng(), undisturbed(model), quick_neurons(model):
        model.eval()
        return network.capture().dictionary
