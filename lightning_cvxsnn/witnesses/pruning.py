"""Remove the hidden units that the readout does not use."""

import copy
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_cvxsnn.network import reset_neurons, undisturbed
from lightning_cvxsnn.network.readout import find_readout
from lightning_cvxsnn.runtime.rng import isolate_rng
from lightning_cvxsnn.witnesses.find_layer import find_witness_layer

Network = TypeVar("Network", bound=nn.Module)

_TOLERANCE = 1e-4  # of the outputs, relative: sums over fewer units round differently


@torch.no_grad()
def prune(model: Network, x: Any = None, *, readout: str | None = None) -> Network:
    """A smaller copy of ``model``, without the last hidden units whose readout weights are all zero.

    An L1 solution uses few units, and the others change no output. Of a convolution, channels are units; a batch norm
    behind the layer loses the same ones. Training goes on in a smaller network, too; give its parameters to a new
    optimiser. A checkpoint of it needs the new width when loaded, such as
    ``LitSNN.load_from_checkpoint(path, hidden=[128, 37])``.

    Args:
        model: A network whose last hidden layer is an ``nn.Linear`` or a convolution, written by an accepted solve; it
            is not changed.
        x: One batch of inputs, on the network's device, to find the layers by and to compare outputs on. None: the
            LightningModule's ``example_input_array``.
        readout: Dotted name of the readout; None: the last linear layer that ``x`` reaches.

    Returns:
        The copy, in the mode of ``model``; the same outputs of the readout up to float rounding.

    Raises:
        MisconfigurationException: If there is no ``x``, no readout is found, or it uses no unit at all.
        ValueError: If units cannot be taken from the last hidden layer one at a time.
        RuntimeError: If the copy answers differently on ``x``: the width is written somewhere else in the network too.

    Example:
        >>> from lightning_cvxsnn import LitSNN
        >>> net = LitSNN(hidden=[16])
        >>> _ = net.readout.weight.data[:, 4:].zero_()
        >>> prune(net, torch.rand(2, 8, 8)).readout
        Linear(in_features=4, out_features=10, bias=True)
    """
    x = getattr(model, "example_input_array", None) if x is None else x
    if x is None:
        raise MisconfigurationException(
            f"{type(model).__name__} has no example_input_array. Expected it, or one batch of inputs: prune(model, x)."
        )
    with isolate_rng(), undisturbed(model):
        model.eval()
        found = find_readout(model, x, readout)
        layer = find_witness_layer(model, found, [x])
        own = layer.columns_per_unit
        used = found.module.weight.any(0).view(-1, own).any(1)
        if not bool(used.any()):
            raise MisconfigurationException(
                f"All weights of the readout '{found.name}' are zero, so no unit would be left. Expected a readout "
                "that uses some; lower beta and solve again."
            )
        reset_neurons(model)
        expected = found.forward_of(model)(x)
        reset_neurons(model)  # a neuron's memory of a forward cannot be copied
        smaller = copy.deepcopy(model)
    affine: Any = smaller.get_submodule(layer.affine_name)
    head: Any = smaller.get_submodule(found.name)
    affine.weight = _part(affine.weight, affine.weight[used])
    if affine.bias is not None:
        affine.bias = _part(affine.bias, affine.bias[used])
    if layer.norm is not None:
        norm: Any = smaller.get_submodule(layer.norm_name)
        norm.weight, norm.bias = _part(norm.weight, norm.weight[used]), _part(norm.bias, norm.bias[used])
        norm.running_mean, norm.running_var = norm.running_mean[used], norm.running_var[used]
        norm.num_features = int(used.sum())
    head.weight = _part(head.weight, head.weight[:, used.repeat_interleave(own)])
    setattr(affine, "out_features" if isinstance(affine, nn.Linear) else "out_channels", int(used.sum()))
    head.in_features = int(used.sum()) * own
    for ours, theirs in zip(smaller.modules(), model.modules(), strict=True):
        ours.training = theirs.training
    with isolate_rng(), undisturbed(smaller):
        smaller.eval()
        try:
            answer = found.forward_of(smaller)(x)
        except RuntimeError as failure:  # of a part that expects the old width
            raise RuntimeError(_depends(used, layer.affine_name, f"fails: {failure}")) from failure
    error = float((answer - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not error <= _TOLERANCE:
        raise RuntimeError(_depends(used, layer.affine_name, f"answers differently, by {error:.1%}"))
    return smaller


def _part(parameter: nn.Parameter, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.clone(), requires_grad=parameter.requires_grad)


def _depends(used: Tensor, layer: str, how: str) -> str:
    return (
        f"Without the {int((~used).sum())} unused units of '{layer}' the network {how}. Expected a network whose other "
        "parts do not depend on that width, and the same output for the same input in eval mode."
    )
