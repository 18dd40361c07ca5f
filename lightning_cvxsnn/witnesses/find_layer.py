"""The last spiking layer, found and proved."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import pooling
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from lightning_cvxsnn.network.activity import LayerActivity, measure_activity
from lightning_cvxsnn.network.isolation import forward_of, reset_neurons
from lightning_cvxsnn.network.neurons import neuron_of
from lightning_cvxsnn.network.readout import Readout
from lightning_cvxsnn.network.reduction import ReductionKind, TimeReduction
from lightning_cvxsnn.patterns.kernels import Backend
from lightning_cvxsnn.patterns.neuron import Neuron
from lightning_cvxsnn.witnesses.layer import INSTEAD, Affine, WitnessLayer, applied, check_writable, folded, pooled

_PROBE_SEED = 0
_ROUNDING = 3e-2  # relative
_KINDS: tuple[ReductionKind, ...] = ("last", "mean", "sum", "all")
_POOLING = (pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveMaxPoolNd, pooling._AdaptiveAvgPoolNd)


@torch.no_grad()
def find_witness_layer(
    module: nn.Module,
    readout: Readout,
    inputs: Iterable[Any],
    samples: Tensor | None = None,
    backend: Backend = "auto",
    check_memory: Callable[[Tensor], object] | None = None,
) -> WitnessLayer:
    """Find the last spiking layer, prove that its spikes are the dictionary, and record what reaches it.

    The proof lets the neurons send random spikes: the readout must receive them, pooled by the modules that ran in
    between and reduced over time, and the layer must not notice. Call it inside ``undisturbed``.

    Args:
        module: The network.
        readout: Its readout.
        inputs: Batches of inputs, on the network's device.
        samples: Bool ``[N]``: the samples to record; None: all.
        backend: Engine of candidates' patterns, see `resolve_backend`; neurons of unknown dynamics are run themselves.
        check_memory: Called once, with what reaches the layer of the first batch, ``[T, n, ...]``; raises where the
            rest does not fit.

    Raises:
        ValueError: If there is no row; or the last spiking layer is not a linear layer or a convolution with weights
            of its own that require a gradient, followed by neurons that share their constants, whose spikes alone the
            readout receives.
    """
    batches = iter(inputs)
    first = next(batches, None)
    if first is None:
        raise ValueError("The dataloader gave no rows; expected at least one batch to take witnesses from.")
    activities = [layer for layer in measure_activity(module, [first]) if layer.name != readout.neuron_name]
    if not activities:
        raise ValueError(f"No spiking layer feeds the readout, so there are no witnesses to choose. {INSTEAD}")
    activity = activities[-1]
    name, affine_name = activity.name, activity.normalised or activity.affine_name
    affine, norm, neuron = _check_layer(module, activity)
    own_weight, own_bias = folded(affine, norm)
    with _Recorder(module, affine, neuron, readout.module) as recorder:
        as_is = recorder.pass_over(module, first)
        arrange = partial(_arrange, affine=affine, weight=own_weight, bias=own_bias, name=name, affine_name=affine_name)
        steps = arrange(as_is)
        if check_memory is not None:
            check_memory(steps)
        recorder.generator = torch.Generator().manual_seed(_PROBE_SEED)
        probed = recorder.pass_over(module, first)
        recorder.generator = None
        if not all(torch.equal(a, b) for a, b in zip(as_is.received, probed.received, strict=True)):
            raise ValueError(
                f"What '{affine_name}' receives depends on the spikes of '{name}' (recurrence), so other weights "
                f"cannot be tried on recorded inputs. {INSTEAD}"
            )
        values, scale = readout.reduction.sum_steps(readout.reduction.to_steps(probed.read))
        own = _own_reduction(_stack(probed.sent, affine), as_is.pools, values * scale, readout.reduction)
        if own is None:
            raise ValueError(
                f"What the readout receives is not the spikes of '{name}' reduced over time (other layers in between, "
                f"functional pooling), so the columns that other weights would make are not known. {INSTEAD}"
            )
        taken, start = [], 0
        for x in chain([first], batches):
            steps = arrange(recorder.pass_over(module, x))
            stop = start + steps.shape[1]
            taken.append(steps if samples is None else steps[:, samples[start:stop].to(steps.device)])
            start = stop
    width, sent = len(affine.weight), _stack(as_is.sent, affine)
    return WitnessLayer(
        affine_name, name, affine, neuron, own, torch.cat(taken, 1).contiguous(), sent.shape[3:].numel(),
        readout.module.in_features // width, tuple(as_is.pools), _constants(neuron, backend), backend,
        norm, activity.affine_name if norm is not None else "",
    )  # fmt: skip


def _constants(neuron: nn.Module, backend: Backend) -> Neuron | None:
    """The constants of a neuron whose dynamics are known; the kernels know no others."""
    try:
        return neuron_of(neuron)
    except ValueError as error:
        if backend == "cupy":
            raise ValueError(
                f"backend='cupy' cannot run the network's neurons: {error} Or use backend='auto'."
            ) from error
        return None


def _check_layer(module: nn.Module, activity: LayerActivity) -> tuple[Affine, _BatchNorm | None, nn.Module]:
    """The layer's modules, refusing a layer whose weights cannot be replaced one unit at a time."""
    name, affine_name = activity.name, activity.normalised or activity.affine_name
    neuron, affine = module.get_submodule(name), module.get_submodule(affine_name) if affine_name else None
    norm = cast(_BatchNorm, module.get_submodule(activity.affine_name)) if activity.normalised else None
    if norm is not None:
        if norm.running_mean is None:
            raise ValueError(
                f"The batch norm '{activity.affine_name}' keeps no running statistics, so what it sends depends on the "
                f"batch. Expected track_running_stats=True. {INSTEAD}"
            )
        check_writable(module, activity.affine_name)
    if not isinstance(affine, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        found = f"'{affine_name}' ({type(affine).__name__})" if affine_name else "no affine layer"
        raise ValueError(
            f"The last spiking layer '{name}' is fed by {found}; expected an nn.Linear or a convolution. {INSTEAD}"
        )
    if isinstance(affine, _ConvNd) and (affine.groups > 1 or affine.padding_mode != "zeros"):
        raise ValueError(
            f"'{affine_name}' is a convolution with groups={affine.groups}, padding_mode={affine.padding_mode!r}; "
            f"expected 1 and 'zeros'. {INSTEAD}"
        )
    check_writable(module, affine_name)
    per_unit = [n for n, t in (*neuron.named_parameters(), *neuron.named_buffers()) if t.numel() > 1]
    if per_unit:
        raise ValueError(
            f"The neurons of '{name}' have constants of their own ({', '.join(per_unit)}); expected neurons that are "
            f"all alike, so that a candidate is the same in every place. {INSTEAD}"
        )
    return affine, norm, neuron


@dataclass
class _Pass:
    """What the layer's parts received and sent in one forward pass, call by call, and what pooled that."""

    received: list[Tensor] = field(default_factory=list)
    currents: list[Tensor] = field(default_factory=list)
    sent: list[Tensor] = field(default_factory=list)
    read: list[Tensor] = field(default_factory=list)
    pools: list[nn.Module] = field(default_factory=list)


class _Recorder:
    """Records passes; with a ``generator`` the neurons send random spikes."""

    def __init__(self, module: nn.Module, affine: nn.Module, neuron: nn.Module, readout: nn.Module) -> None:
        self._modules = affine, neuron, readout
        self._pools = [m for m in module.modules() if isinstance(m, _POOLING)]
        self._pass, self._behind = _Pass(), False
        self.generator: torch.Generator | None = None

    def __enter__(self) -> "_Recorder":
        affine, neuron, readout = self._modules
        self._handles = [
            affine.register_forward_pre_hook(lambda _, args: self._receive(args[0].detach())),
            neuron.register_forward_pre_hook(lambda _, args: self._pass.currents.append(args[0].detach())),
            neuron.register_forward_hook(lambda _, args, spikes: self._send(spikes)),
            readout.register_forward_pre_hook(lambda _, args: self._pass.read.append(args[0].detach())),
            *(pool.register_forward_pre_hook(lambda pool, args: self._pool(pool)) for pool in self._pools),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _receive(self, inputs: Tensor) -> None:
        self._behind = False
        self._pass.received.append(inputs)

    def _pool(self, pool: nn.Module) -> None:
        if self._behind and pool not in self._pass.pools:
            self._pass.pools.append(pool)

    def _send(self, spikes: Tensor) -> Tensor:
        self._behind = True
        if self.generator is not None:
            spikes = torch.randint(0, 2, spikes.shape, generator=self.generator).to(spikes)
        self._pass.sent.append(spikes.detach())
        return spikes

    def pass_over(self, module: nn.Module, x: Any) -> _Pass:
        self._pass = _Pass()
        reset_neurons(module)
        forward_of(module)(x)
        return self._pass


def _arrange(record: _Pass, *, affine: Affine, weight: Tensor, bias: Tensor, name: str, affine_name: str) -> Tensor:
    """The layer's inputs ``[T, N, F]`` or ``[T, N, C, ...]``, in whatever order and shape they came."""
    currents, rank = _stack(record.currents, affine), affine.weight.dim()
    received = torch.cat([r.reshape(-1, *r.shape[1 - rank :]) for r in record.received])
    if currents.dim() == 1 + rank:
        steps, samples = currents.shape[:2]
        orders = []
        if len(received) == steps * samples:
            orders = [received.unflatten(0, (steps, samples)), received.unflatten(0, (samples, steps)).transpose(0, 1)]
        elif len(received) == samples:
            orders = [received.expand(steps, *received.shape)]
        for order in orders:
            expected = applied(affine, order, weight, bias)
            if expected.shape == currents.shape and _close(expected, currents):
                return order
    raise ValueError(
        f"'{name}' receives something else than the output of '{affine_name}', or not as [time steps, samples, units] "
        f"(found {list(currents.shape)}), so other weights cannot be tried in its place. {INSTEAD}"
    )


def _stack(calls: list[Tensor], affine: Affine) -> Tensor:
    """``[T, N, P, ...]`` from one call over all steps or from one call a step; other calls are left as they came."""
    alike = all(call.shape == calls[0].shape for call in calls)
    return torch.stack(calls) if alike and (len(calls) > 1 or calls[0].dim() == affine.weight.dim()) else calls[0]


def _own_reduction(
    spikes: Tensor, pools: Iterable[nn.Module], rows: Tensor, reduction: TimeReduction
) -> TimeReduction | None:
    """The reduction that makes ``rows``, which are the readout's, of the neurons' spikes; None if there is none."""
    try:
        columns = pooled(pools, spikes).flatten(2)
    except RuntimeError:  # what ran in between changed more than the pooling modules do
        return None
    candidates = [TimeReduction(kind, "steps", len(spikes)) for kind in _KINDS]
    if reduction.kind == "weighted":
        candidates = [replace(reduction, layout="steps")]
    for candidate in candidates:
        values, scale = candidate.sum_steps(columns)
        if values.shape == rows.shape and _close(values * scale, rows):
            return candidate
    return None


def _close(actual: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding, which may be that of half precision; another order or layer is far off."""
    difference = (actual.float() - expected.float()).abs().max()
    return bool(difference <= _ROUNDING * expected.float().abs().max())
