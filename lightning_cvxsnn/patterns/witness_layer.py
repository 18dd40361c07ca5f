"""The last spiking layer, found and proved: what reaches it, and the columns that other weights would make of that."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import pooling
from torch.nn.modules.conv import _ConvNd

from lightning_cvxsnn.patterns.calibrate import Forward, LayerActivity, factors_for, measure_activity
from lightning_cvxsnn.patterns.dictionary import SpikeDictionary
from lightning_cvxsnn.patterns.dynamics import Neuron, PatternKind, spike_patterns
from lightning_cvxsnn.patterns.isolation import fresh_state
from lightning_cvxsnn.patterns.kernels import Backend
from lightning_cvxsnn.patterns.reduction import Reduction, ReductionKind

Affine = nn.Linear | _ConvNd

_BLOCK = 2**21  # currents held at once, 8 MiB of float32
_SCALED = 2**25  # the same, of units brought to a rate
_PROBE_SEED = 0
_ROUNDING = 3e-2  # relative
_INSTEAD = "Witnesses cannot be replaced, pruned or widened there; witnesses='calibrated' works for such a network."
_KINDS: tuple[ReductionKind, ...] = ("last", "mean", "sum", "all")
_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
_POOLING = (pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveMaxPoolNd, pooling._AdaptiveAvgPoolNd)


@dataclass(frozen=True, eq=False)
class WitnessLayer:
    """The affine layer and the neurons behind it whose spikes are the dictionary, and what reaches them.

    A unit of a linear layer makes one column. A channel of a convolution is a unit that sends a map of spikes, and
    makes a column of each place of the map that the readout receives.

    Attributes:
        affine_name: Dotted name of the linear or convolutional layer.
        neuron_name: Dotted name of the neuron module.
        affine: The layer; its rows, flat, are the witnesses.
        neuron: The neuron module; candidates are run through it as it is.
        reduction: How its spikes over time become rows of the dictionary.
        inputs: ``[T, N, F]``, what the layer receives; ``[T, N, C, ...]`` of a convolution.
        places: Spikes that a unit can send in a step.
        columns_per_unit: Columns that it makes.
        pools: What its map passes on its way to the readout.
        constants: The neuron's constants, where its dynamics are known: candidates then need no pass through it.
        backend: Engine of their patterns, see `resolve_backend`.
    """

    affine_name: str
    neuron_name: str
    affine: Affine
    neuron: nn.Module
    reduction: Reduction
    inputs: Tensor
    places: int = 1
    columns_per_unit: int = 1
    pools: tuple[nn.Module, ...] = ()
    constants: Neuron | None = None
    backend: Backend = "auto"

    @property
    def weight(self) -> Tensor:
        """The layer's own, flat, ``[P, F]``."""
        return self.affine.weight.flatten(1)

    @property
    def bias(self) -> Tensor:
        """The layer's own, ``[P]``; zeros where it has none."""
        bias = self.affine.bias
        return self.weight.new_zeros(len(self.weight)) if bias is None else bias

    def currents(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """What units with ``weight [M, F]`` and ``bias [M]`` send their neurons: ``[T, N, M]``, or maps of that."""
        return _applied(self.affine, inputs, self._shaped(weight), bias)

    def spikes(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Spikes of units with ``weight [M, F]`` and ``bias [M]``, with the neuron's own gradient; as `currents`."""
        return run_neuron(self.neuron, self.currents(inputs, weight, bias))

    def rows(self, spikes: Tensor) -> tuple[Tensor, float]:
        """The dictionary's rows that ``spikes`` make, and their scale, as of `Reduction.sum_steps`; unit by unit."""
        return self.reduction.sum_steps(_pooled(self.pools, spikes).flatten(2))

    @torch.no_grad()
    def write(self, weight: Tensor, bias: Tensor) -> None:
        """Copy ``weight [P, F]`` and ``bias [P]`` into the layer's own parameters, in place."""
        self.affine.weight.copy_(self._shaped(weight))
        if self.affine.bias is not None:
            self.affine.bias.copy_(bias)

    @torch.no_grad()
    def columns(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> SpikeDictionary:
        """The columns that units with ``weight [M, F]`` and ``bias [M]`` make of ``inputs``, on the CPU."""
        blocks = []
        for part in torch.arange(len(weight)).split(self._units(_BLOCK, inputs)):
            currents = self.currents(inputs, weight[part], bias[part])
            kind = self.reduction.kind
            known = kind in get_args(PatternKind) and currents.dtype == torch.float32 and not self.pools
            if self.constants is None or not known:
                values, scale = self.rows(run_neuron(self.neuron, currents))
                blocks.append(SpikeDictionary.from_values(values, scale))
            else:
                found = spike_patterns(self.constants, currents.flatten(2), cast(PatternKind, kind), self.backend)
                blocks.append(SpikeDictionary(found.block(slice(0, inputs.shape[1])), found.scale))
        return side_by_side(blocks)

    @torch.no_grad()
    def calibrated(self, inputs: Tensor, weight: Tensor, bias: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """``weight [M, F]`` and ``bias [M]``, each unit scaled so that it fires at ``rate`` on ``inputs``."""
        scaled = []
        for part in torch.arange(len(weight)).split(self._units(_SCALED, inputs)):
            currents = self.currents(inputs, weight[part], bias[part]).transpose(2, -1)  # units last, as factors are

            def rates(factors: Tensor, currents: Tensor = currents) -> Tensor:
                spikes = run_neuron(self.neuron, (currents * factors).transpose(2, -1))
                return spikes.float().transpose(2, -1).flatten(0, -2).mean(0)

            scaled.append(factors_for(rates, len(part), rate, weight.device))
        factors = torch.cat(scaled)
        return weight * factors[:, None], bias * factors

    @torch.no_grad()
    def patches(self, first: Tensor, second: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What a unit sees of each of two inputs, both at one place.

        The place is drawn by how much they differ there, squared. All of the input of a linear layer is seen.

        Args:
            first: ``[n, F]``, or ``[n, C, ...]``.
            second: The same.
            generator: Source of randomness, on the CPU.

        Returns:
            Two of ``[n, F]``.
        """
        if isinstance(self.affine, nn.Linear):
            return first, second
        fan_in = self.weight.shape[1]
        every, none = torch.eye(fan_in).to(first), first.new_zeros(fan_in)
        found = []
        for part in torch.arange(len(first)).split(max(_BLOCK // (fan_in * self.places), 1)):
            seen = self.currents(torch.stack([first[part], second[part]]), every, none).flatten(3)
            differ = (seen[0] - seen[1]).square().sum(1).clamp_min(torch.finfo(torch.float32).tiny)
            place = torch.multinomial(differ.float().cpu(), 1, generator=generator).to(seen.device)
            found.append(seen.gather(3, place[None, :, None].expand(2, -1, fan_in, -1))[..., 0])
        ours, theirs = torch.cat(found, 1)
        return ours, theirs

    def _shaped(self, weight: Tensor) -> Tensor:
        return weight.unflatten(1, self.affine.weight.shape[1:])

    def _units(self, most: int, inputs: Tensor) -> int:
        """Units whose currents are ``most`` numbers."""
        return max(most // (inputs.shape[0] * inputs.shape[1] * self.places), 1)


def side_by_side(dictionaries: Sequence[SpikeDictionary]) -> SpikeDictionary:
    """One dictionary of the columns of several of one scale, on the CPU."""
    counts = [d.counts.cpu() for d in dictionaries]
    dtype = max((c.dtype for c in counts), key=lambda d: (d.is_floating_point, d.itemsize))
    return SpikeDictionary(torch.cat([c.to(dtype) for c in counts], 1), dictionaries[0].scale)


def run_neuron(neuron: nn.Module, currents: Tensor) -> Tensor:
    """Spikes of ``currents [T, N, M]`` from a fresh state."""
    fresh_state(neuron)
    return _over_steps(neuron, currents)


def _over_steps(module: nn.Module, steps: Tensor) -> Tensor:
    """A module over ``[T, ...]``, all at once or step by step as it is made."""
    if getattr(module, "step_mode", "s") == "m":
        return module(steps)
    return torch.stack([module(step) for step in steps])


@torch.no_grad()
def find_witness_layer(
    module: nn.Module,
    readout: nn.Linear,
    reduction: Reduction,
    forward: Forward,
    inputs: Iterable[Any],
    samples: Tensor | None = None,
    backend: Backend = "auto",
    room: Callable[[Tensor], object] | None = None,
) -> WitnessLayer:
    """Find the last spiking layer, prove that its spikes are the dictionary, and record what reaches it.

    The proof lets the neurons send random spikes: the readout must receive them, pooled by the modules that ran in
    between and reduced over time, and the layer must not notice. Call it inside ``undisturbed``.

    Args:
        module: The network.
        readout: Its readout.
        reduction: The readout's reduction.
        forward: One forward pass.
        inputs: Batches of inputs, on the network's device.
        samples: Bool ``[N]``: the samples to record; None: all.
        backend: Engine of candidates' patterns, see `resolve_backend`; neurons of unknown dynamics are run themselves.
        room: Told what reaches the layer of the first batch, ``[T, n, ...]``, before the others are run; it may refuse.

    Raises:
        ValueError: If there is no row; or the last spiking layer is not a linear layer or a convolution with weights
            of its own that require a gradient, followed by neurons that share their constants, whose spikes alone the
            readout receives.
    """
    batches = iter(inputs)
    first = next(batches, None)
    if first is None:
        raise ValueError("The dataloader gave no rows; expected at least one batch to take witnesses from.")
    activities = measure_activity(module, forward, [first])
    if activities and activities[-1].affine_name and module.get_submodule(activities[-1].affine_name) is readout:
        activities.pop()  # a spiking output layer
    if not activities:
        raise ValueError(f"No spiking layer feeds the readout, so there are no witnesses to choose. {_INSTEAD}")
    activity = activities[-1]
    name, affine_name = activity.name, activity.affine_name
    affine, neuron = _check_layer(module, activity)
    with _Recorder(module, affine, neuron, readout) as recorder:
        as_is = recorder.pass_over(module, forward, first)
        steps = _arrange(as_is, affine, name, affine_name)
        if room is not None:
            room(steps)
        recorder.generator = torch.Generator().manual_seed(_PROBE_SEED)
        probed = recorder.pass_over(module, forward, first)
        recorder.generator = None
        if not all(torch.equal(a, b) for a, b in zip(as_is.received, probed.received, strict=True)):
            raise ValueError(
                f"What '{affine_name}' receives depends on the spikes of '{name}' (recurrence), so other weights "
                f"cannot be tried on recorded inputs. {_INSTEAD}"
            )
        values, scale = reduction.sum_steps(reduction.to_steps(probed.read))
        own = _own_reduction(_stack(probed.sent, affine), as_is.pools, values * scale, reduction)
        if own is None:
            raise ValueError(
                f"What the readout receives is not the spikes of '{name}' reduced over time (other layers in between, "
                f"functional pooling), so the columns that other weights would make are not known. {_INSTEAD}"
            )
        taken, start = [], 0
        for x in chain([first], batches):
            steps = _arrange(recorder.pass_over(module, forward, x), affine, name, affine_name)
            stop = start + steps.shape[1]
            taken.append(steps if samples is None else steps[:, samples[start:stop].to(steps.device)])
            start = stop
    width, sent = len(affine.weight), _stack(as_is.sent, affine)
    return WitnessLayer(
        affine_name, name, affine, neuron, own, torch.cat(taken, 1).contiguous(), sent.shape[3:].numel(),
        readout.in_features // width, tuple(as_is.pools), _constants(neuron, backend), backend,
    )  # fmt: skip


def _constants(neuron: nn.Module, backend: Backend) -> Neuron | None:
    """The constants of a neuron whose dynamics are known; the kernels know no others."""
    try:
        return Neuron.from_module(neuron)
    except ValueError as error:
        if backend == "cupy":
            raise ValueError(
                f"backend='cupy' cannot run the network's neurons: {error} Or use backend='auto'."
            ) from error
        return None


def _check_layer(module: nn.Module, activity: LayerActivity) -> tuple[Affine, nn.Module]:
    """The layer's modules, refusing a layer whose weights cannot be replaced one unit at a time."""
    name, affine_name = activity.name, activity.affine_name
    neuron, affine = module.get_submodule(name), module.get_submodule(affine_name) if affine_name else None
    if not isinstance(affine, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        found = f"'{affine_name}' ({type(affine).__name__})" if affine_name else "no affine layer"
        raise ValueError(
            f"The last spiking layer '{name}' is fed by {found}; expected an nn.Linear or a convolution. {_INSTEAD}"
        )
    if isinstance(affine, _ConvNd) and (affine.groups > 1 or affine.padding_mode != "zeros"):
        raise ValueError(
            f"'{affine_name}' is a convolution with groups={affine.groups}, padding_mode={affine.padding_mode!r}; "
            f"expected 1 and 'zeros'. {_INSTEAD}"
        )
    check_writable(module, affine_name)
    per_unit = [n for n, t in (*neuron.named_parameters(), *neuron.named_buffers()) if t.numel() > 1]
    if per_unit:
        raise ValueError(
            f"The neurons of '{name}' have constants of their own ({', '.join(per_unit)}); expected neurons that are "
            f"all alike, so that a candidate is the same in every place. {_INSTEAD}"
        )
    return affine, neuron


def check_writable(module: nn.Module, name: str) -> None:
    """Refuse an affine layer whose weights are computed, frozen or shared.

    Raises:
        ValueError: If new weights cannot be written into it.
    """
    affine = module.get_submodule(name)
    if not isinstance(affine._parameters.get("weight"), nn.Parameter):
        raise ValueError(
            f"The weight of '{name}' is computed from other parameters (weight norm, parametrization) and cannot be "
            f"written. Expected a plain layer. {_INSTEAD}"
        )
    for kind, parameter in affine.named_parameters(recurse=False):
        names = [n for n, p in module.named_parameters(remove_duplicate=False) if p is parameter]
        if not parameter.requires_grad or len(names) > 1:
            state = "frozen (requires_grad=False)" if len(names) == 1 else f"shared, as {names}"
            raise ValueError(f"'{name}.{kind}' is {state} and would be overwritten. {_INSTEAD}")


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

    def pass_over(self, module: nn.Module, forward: Forward, x: Any) -> _Pass:
        self._pass = _Pass()
        fresh_state(module)
        forward(x)
        return self._pass


def _arrange(record: _Pass, affine: Affine, name: str, affine_name: str) -> Tensor:
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
            expected = _applied(affine, order, affine.weight, affine.bias)
            if expected.shape == currents.shape and _close(expected, currents):
                return order
    raise ValueError(
        f"'{name}' receives something else than the output of '{affine_name}', or not as [time steps, samples, units] "
        f"(found {list(currents.shape)}), so other weights cannot be tried in its place. {_INSTEAD}"
    )


def _applied(affine: Affine, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's outputs for ``inputs [T, N, ...]`` at another weight and bias, of as many units as these have."""
    if isinstance(affine, nn.Linear):
        return F.linear(inputs, weight, bias)
    convolve = next(function for kind, function in _CONVOLUTIONS.items() if isinstance(affine, kind))
    outputs = convolve(inputs.flatten(0, 1), weight, bias, affine.stride, affine.padding, affine.dilation)
    return outputs.unflatten(0, inputs.shape[:2])


def _pooled(pools: Iterable[nn.Module], spikes: Tensor) -> Tensor:
    for pool in pools:
        spikes = _over_steps(pool, spikes)
    return spikes


def _stack(calls: list[Tensor], affine: Affine) -> Tensor:
    """``[T, N, P, ...]`` from one call over all steps or from one call a step; other calls are left as they came."""
    alike = all(call.shape == calls[0].shape for call in calls)
    return torch.stack(calls) if alike and (len(calls) > 1 or calls[0].dim() == affine.weight.dim()) else calls[0]


def _own_reduction(spikes: Tensor, pools: Iterable[nn.Module], rows: Tensor, reduction: Reduction) -> Reduction | None:
    """The reduction that makes ``rows``, which are the readout's, of the neurons' spikes; None if there is none."""
    try:
        pooled = _pooled(pools, spikes).flatten(2)
    except RuntimeError:  # what ran in between changed more than the pooling modules do
        return None
    candidates = [Reduction(kind, "steps", len(spikes)) for kind in _KINDS]
    if reduction.kind == "weighted":
        candidates = [replace(reduction, layout="steps")]
    for candidate in candidates:
        values, scale = candidate.sum_steps(pooled)
        if values.shape == rows.shape and _close(values * scale, rows):
            return candidate
    return None


def _close(actual: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding, which may be that of half precision; another order or layer is far off."""
    difference = (actual.float() - expected.float()).abs().max()
    return bool(difference <= _ROUNDING * expected.float().abs().max())
