"""Reconstruction without a Trainer."""

from functools import partial
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.reconstruction.reconstructor import Reconstructor
from lightning_cvxsnn.reconstruction.settings import Settings
from lightning_cvxsnn.reports.advice import advise
from lightning_cvxsnn.reports.solve_report import SolveReport


def reconstruct(model: nn.Module, dataloader: Any, validation: Any = None, **arguments: Any) -> SolveReport:
    """Solve for the readout of ``model`` once and write the solution, without a Trainer.

    Args:
        model: A spiking network: a LightningModule, or any module whose ``forward`` returns what the loss is applied
            to. Batch norms in training mode are estimated anew; put the model in eval mode to keep their statistics.
        dataloader: A ``DataLoader`` (or list) of training batches ``(x, y)``.
        validation: A ``DataLoader`` (or list) of rows that judge; None: a fifth of the training rows does.
        **arguments: Those of `ConvexReconstruction`; the ones about a schedule have no effect. The readout is written
            at full scale unless ``scale`` says otherwise.

    Returns:
        The report. ``report.accepted`` tells whether the readout was written.

    Raises:
        MisconfigurationException: For a wrong argument, network or data; nothing is written.
        ValueError: If the data holds NaN or infinity; nothing is written.

    Example:
        >>> import torch
        >>> from spikingjelly.activation_based import neuron
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> _ = torch.manual_seed(0)
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.hidden = nn.Sequential(nn.Linear(2, 16), neuron.LIFNode(step_mode="m"))
        ...         self.readout = nn.Linear(16, 2)
        ...     def forward(self, x):  # x [N, 2], presented for four steps
        ...         return self.readout(self.hidden(x.expand(4, *x.shape)).mean(0))
        >>> x = torch.rand(200, 2) * 4
        >>> rows = DataLoader(TensorDataset(x, (x[:, 0] > x[:, 1]).long()), batch_size=8)
        >>> report = reconstruct(Net(), rows, beta=0.01)
        >>> report.accepted, report.gap < 1e-6, report.rows
        (True, True, 200)
    """
    known = sorted(Settings.__dataclass_fields__)
    if unknown := sorted(set(arguments) - set(known)):
        raise MisconfigurationException(f"reconstruct() got unexpected arguments {unknown}. Expected some of {known}.")
    settings = Settings(**arguments)
    rows = rows_of(model, dataloader, max_samples=settings.max_samples, seed=settings.seed)
    judging = (
        None
        if validation is None
        else partial(rows_of, model, validation, max_samples=settings.max_samples, seed=settings.seed)
    )
    report = Reconstructor(settings).run(model, rows, "single solve", validation=judging)
    advise([report])
    rank_zero_info(f"ConvexReconstruction {report.line()}")
    return report
