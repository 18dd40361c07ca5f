"""Maximum-margin witnesses for a network: the same spikes, further from every threshold."""

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_cvxsnn.network import undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.network.transaction import all_or_nothing
from lightning_cvxsnn.witnesses.find_layer import find_witness_layer
from lightning_cvxsnn.witnesses.margin import margins, widen


@dataclass(frozen=True)
class MarginReport:
    """What `widen_margins` did; margins are distances of a membrane voltage from its threshold.

    Attributes:
        layer: Dotted name of the linear layer.
        units: Its units.
        widened: Units whose weights were replaced.
        kept: Units left alone because float32 rounding of the new weights would have changed a spike.
        smallest_before: Smallest margin of all units, rows and steps, in float64, at the weights found.
        smallest_after: The same at the weights written.
        median_before: Median over units of their smallest margins, at the weights found.
        median_after: The same at the weights written.
    """

    layer: str
    units: int
    widened: int
    kept: int
    smallest_before: float
    smallest_after: float
    median_before: float
    median_after: float


@torch.no_grad()
def widen_margins(
    model: nn.Module, dataloader: Any, *, readout: str | None = None, max_samples: int | None = None, seed: int = 0
) -> MarginReport:
    """Give the last hidden layer the weights of the largest margin that make the same spikes on the training rows.

    Spikes close to their threshold are lost to rounding: of another batch size, of half precision, of a quantised chip.
    Each unit's weights and bias are replaced by those of at most their norm whose voltages stay furthest from the
    threshold (arXiv 2605.08022, reconstruction); the spikes on the training rows, hence the dictionary, the outputs and
    every certificate, stay as they are, bit for bit. On other rows spikes may change. It takes seconds with
    ten inputs a unit, minutes with hundreds.

    Args:
        model: A network whose last hidden layer is an ``nn.Linear`` with IF, LIF or parametric LIF neurons behind it;
            its weights are changed in place.
        dataloader: A ``DataLoader`` (or list) of training batches ``(x, y)``.
        readout: Dotted name of the readout; None: the last linear layer that a batch reaches.
        max_samples: Use this many rows, a random subset; the spikes of the others may change. None: all.
        seed: Seed of the subset.

    Returns:
        Margins before and after.

    Raises:
        MisconfigurationException: If there is no readout to be found, or the data is not as expected.
        ValueError: If the last hidden layer is not of this kind. Nothing is written.
        RuntimeError: If the spikes that the network itself makes would change. Nothing is written.

    Example:
        >>> from lightning_cvxsnn import DigitsDataModule, LitSNN
        >>> _ = torch.manual_seed(0)
        >>> data = DigitsDataModule()
        >>> data.setup("fit")
        >>> report = widen_margins(LitSNN(hidden=[16]), data.train_dataloader(), max_samples=100)
        >>> report.smallest_after > 10 * report.smallest_before
        True
    """
    network = Network(model, rows_of(model, dataloader, max_samples=max_samples, seed=seed), readout)
    with isolate_rng(), all_or_nothing(model), undisturbed(model):
        model.eval()
        layer = find_witness_layer(model, network.readout, (batch.x for batch in network.rows))
        if not isinstance(layer.affine, nn.Linear):
            raise ValueError(
                f"'{layer.affine_name}' is a convolution, whose channels have a voltage at every place. Expected an "
                "nn.Linear as the last hidden layer."
            )
        if layer.norm is not None:
            raise ValueError(
                f"Between '{layer.affine_name}' and its neurons is the batch norm '{layer.norm_name}', which changes "
                "with every training batch. Expected an nn.Linear that feeds its neurons."
            )
        if layer.constants is None:
            raise ValueError(
                f"The dynamics of '{layer.neuron_name}' ({type(layer.neuron).__name__}) are not known. Expected "
                "spikingjelly's IFNode, LIFNode or ParametricLIFNode, whose voltage is linear in its input weights."
            )
        dictionary = network.capture().dictionary.counts
        weight, bias = layer.affine.weight, layer.affine.bias

        def spikes(weight: Tensor, bias: Tensor | None) -> Tensor:
            return layer.spikes(layer.inputs, weight, weight.new_zeros(len(weight)) if bias is None else bias) != 0

        trains = spikes(weight, bias)
        wide = widen(layer.constants, layer.inputs, weight, bias, trains)
        new_bias = None if bias is None else wide.bias.to(bias)
        same = (spikes(wide.weight.to(weight), new_bias) == trains).flatten(0, 1).all(0)
        wider = (wide.after > wide.before).to(same.device)
        layer.affine.weight[wider & same] = wide.weight.to(weight)[wider & same]
        if new_bias is not None:
            layer.affine.bias[wider & same] = new_bias[wider & same]
        if not torch.equal(network.capture().dictionary.counts, dictionary):
            raise RuntimeError(
                f"With wider margins in '{layer.affine_name}' the network's own spikes changed, so nothing was "
                "written. Does it give the same output for the same input in eval mode?"
            )
        after = margins(layer.constants, layer.inputs, layer.affine.weight, layer.affine.bias, trains)
    return MarginReport(
        layer=layer.affine_name,
        units=len(weight),
        widened=int((wider & same).sum()),
        kept=int((wider & ~same).sum()),
        smallest_before=float(wide.before.min()),
        smallest_after=float(after.min()),
        median_before=float(wide.before.median()),
        median_after=float(after.median()),
    )
