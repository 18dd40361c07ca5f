"""What ails a spiking network, layer by layer, and what a reconstruction would do about it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cvxsnn.convex.losses import loss_named
from lightning_cvxsnn.network.firing import LayerFiring, measure_firing
from lightning_cvxsnn.network.isolation import undisturbed
from lightning_cvxsnn.network.network import TOGETHER, Network
from lightning_cvxsnn.network.neurons import surrogate_width
from lightning_cvxsnn.network.rows import Batch, TrainingRows, count_rows, rows_of
from lightning_cvxsnn.reconstruction.settings import Settings
from lightning_cvxsnn.reconstruction.standalone import reconstruct
from lightning_cvxsnn.reports.diagnosis import Diagnosis, LayerHealth
from lightning_cvxsnn.runtime.rng import isolate_rng
from lightning_cvxsnn.witnesses.ridge import left_out, share_left

_ROWS = 1000  # that layers are measured on


def diagnose(model: nn.Module, dataloader: Any, **arguments: Any) -> Diagnosis:
    """Examine the spiking layers of ``model``, and try a reconstruction without writing it. Nothing is changed.

    All layers are measured in one pass over at most 1000 rows; the reconstruction is a dry run of `reconstruct`. A
    network that it would refuse, such as one whose layers are dead, is described all the same.

    Args:
        model: A spiking network, as for `reconstruct`. Batch norms in training mode are measured with the statistics
            of these rows.
        dataloader: A ``DataLoader`` (or list) of training batches ``(x, y)``.
        **arguments: Those of `ConvexReconstruction`, but for ``dry_run``.

    Returns:
        The layers and the report; ``print`` shows a table, ``plot()`` draws it.

    Raises:
        MisconfigurationException: For a wrong argument or wrong data, or if there is no spiking layer.
        ValueError: If data or parameters hold NaN or infinity.

    Example:
        >>> from lightning_cvxsnn import DigitsDataModule, LitSNN
        >>> data = DigitsDataModule()
        >>> data.setup("fit")
        >>> diagnosis = diagnose(LitSNN(hidden=[16, 16]), data.train_dataloader())
        >>> [layer.units for layer in diagnosis.layers], diagnosis.report.accepted
        ([16, 16], True)
    """
    known = sorted(Settings.__dataclass_fields__.keys() - {"dry_run"})
    if unknown := sorted(arguments.keys() - set(known)):
        raise MisconfigurationException(f"diagnose() got unexpected arguments {unknown}. Expected some of {known}.")
    settings = Settings(**arguments)
    rows = rows_of(model, dataloader, max_samples=min(settings.max_samples or _ROWS, _ROWS), seed=settings.seed)
    network = Network(model, rows)
    network.check_initialised()
    network.check_finite()
    with isolate_rng(), undisturbed(model):
        model.eval()
        network.refresh_norms()
        batches: list[Batch] = []
        firings = measure_firing(model, _read(rows.widened(TOGETHER), batches))
        if not firings:
            network.first()
            raise MisconfigurationException(
                f"Found no spiking layer that a batch reaches in {type(model).__name__}. Expected neurons of "
                "spikingjelly."
            )
        sought = _Sought.of(batches, classes=loss_named(settings.loss).decides)
        layers = [_health(model, firing, sought) for firing in firings]
    measured = sum(map(count_rows, batches))
    try:
        return Diagnosis(layers, measured, reconstruct(model, dataloader, **arguments, dry_run=True))
    except MisconfigurationException as refusal:
        return Diagnosis(layers, measured, refusal=str(refusal))


def _read(rows: TrainingRows, batches: list[Batch]) -> Iterator[Batch]:
    """The batches; ``batches`` keeps all of them but the inputs, which may be large."""
    for batch in rows:
        batches.append(batch._replace(x=None))
        yield batch


class _Sought(NamedTuple):
    """What a probe answers: values ``[n, C]`` with weights ``[n]`` of the rows, and whether the largest decides."""

    values: Tensor
    weights: Tensor
    decides: bool

    @classmethod
    def of(cls, batches: list[Batch], *, classes: bool) -> "_Sought | None":
        """From the targets, where each row has one class or one vector of values; else None.

        Whole numbers that are floats are ``classes``, or values.
        """
        every, weights = [], []
        for batch in batches:
            if not isinstance(batch.y, Tensor) or batch.y.dim() == 0:
                return None
            every.append(batch.y.detach().cpu())
            given = torch.ones(len(batch.y)) if batch.weight is None else batch.weight
            if not isinstance(given, Tensor) or given.shape != (len(batch.y),):
                return None
            weights.append(given.detach().cpu().float())
        y = torch.cat(every)
        y = y.flatten(1).squeeze(1) if y.dim() > 1 else y
        if not y.is_floating_point() and y.dim() > 1:  # a class for each step
            return None
        if y.is_floating_point() and not (classes and y.dim() == 1 and torch.equal(y, y.round())):
            return cls(y.float().reshape(len(y), -1), torch.cat(weights), decides=False)
        _, labels = y.unique(return_inverse=True)
        return cls(F.one_hot(labels).float(), torch.cat(weights), decides=True)


def _health(model: nn.Module, firing: LayerFiring, sought: _Sought | None) -> LayerHealth:
    spikes, error, accuracy = firing.spikes, None, None
    if sought is not None and spikes.shape[0] == len(sought.values):
        answers = left_out(spikes.to_dense(torch.float32), sought.values, sought.weights)
        error = share_left(answers, sought.values, sought.weights)
        if sought.decides:
            hits = (answers.argmax(1) == sought.values.argmax(1)).float()
            accuracy = float(sought.weights @ hits / sought.weights.sum())
    return LayerHealth(
        name=firing.name,
        units=spikes.shape[1],
        rate=spikes.rate,
        silent=spikes.silent,
        saturated=spikes.saturated,
        distinct=spikes.distinct,
        deviation=firing.deviation,
        width=surrogate_width(model.get_submodule(firing.name)),
        error=error,
        accuracy=accuracy,
    )
