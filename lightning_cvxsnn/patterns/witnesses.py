"""Witnesses: the hidden weights behind the columns of the dictionary, and the columns that other weights would make.

Random kinds after Udupi, Yang, Zhai, arXiv 2605.08022 (2026); weights from pairs of training points after Bolager et
al., "Sampling weights of deep neural networks" (NeurIPS 2023).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal, cast, get_args

import torch
from scipy.stats import kstest
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from lightning_cvxsnn.patterns.calibrate import Forward, LayerActivity, factors_for, measure_activity
from lightning_cvxsnn.patterns.dictionary import SpikeDictionary
from lightning_cvxsnn.patterns.dynamics import Neuron, PatternKind, spike_patterns
from lightning_cvxsnn.patterns.isolation import fresh_state, reached
from lightning_cvxsnn.patterns.kernels import Backend
from lightning_cvxsnn.patterns.reduction import Reduction, ReductionKind

GaussianKind = Literal["gaussian_standard", "gaussian_normalized", "gaussian_orthogonal"]

_BLOCK = 2**21  # currents held at once, 8 MiB of float32
_PROBE_SEED = 0
_ROUNDING = 3e-2  # relative
_TINY = 1e-12
_FLOAT32 = 1e-6  # rounding of a bound
_LEVEL = 1e-3
_INSTEAD = "Witnesses cannot be replaced, pruned or widened there; witnesses='calibrated' works for such a network."
_KINDS: tuple[ReductionKind, ...] = ("last", "mean", "sum", "all")


@dataclass(frozen=True, eq=False)
class WitnessLayer:
    """The linear layer and the neurons behind it whose spikes are the dictionary, and what reaches them.

    Attributes:
        affine_name: Dotted name of the linear layer.
        neuron_name: Dotted name of the neuron module.
        affine: The linear layer; its rows are the witnesses.
        neuron: The neuron module; candidates are run through it as it is.
        reduction: How its spikes over time become rows of the dictionary.
        inputs: ``[T, N, F]``, what the linear layer receives.
        constants: The neuron's constants, where its dynamics are known: candidates then need no pass through it.
        backend: Engine of their patterns, see `resolve_backend`.
    """

    affine_name: str
    neuron_name: str
    affine: nn.Linear
    neuron: nn.Module
    reduction: Reduction
    inputs: Tensor
    constants: Neuron | None = None
    backend: Backend = "auto"

    def spikes(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Spikes ``[T, N, M]`` of units with ``weight [M, F]`` and ``bias [M]``, with the neuron's own gradient."""
        return run_neuron(self.neuron, F.linear(inputs, weight, bias))

    @torch.no_grad()
    def write(self, weight: Tensor, bias: Tensor) -> None:
        """Copy ``weight [P, F]`` and ``bias [P]`` into the linear layer's own parameters, in place."""
        self.affine.weight.copy_(weight)
        if self.affine.bias is not None:
            self.affine.bias.copy_(bias)

    @torch.no_grad()
    def columns(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> SpikeDictionary:
        """The columns that units with ``weight [M, F]`` and ``bias [M]`` make of ``inputs [T, N, F]``, on the CPU."""
        blocks = []
        for part in torch.arange(len(weight)).split(max(_BLOCK // (inputs.shape[0] * inputs.shape[1]), 1)):
            currents = F.linear(inputs, weight[part], bias[part])
            kind = self.reduction.kind
            if self.constants is None or currents.dtype != torch.float32 or kind not in get_args(PatternKind):
                values, scale = self.reduction.sum_steps(run_neuron(self.neuron, currents))
                blocks.append(SpikeDictionary.from_values(values, scale))
            else:
                found = spike_patterns(self.constants, currents, cast(PatternKind, kind), self.backend)
                blocks.append(SpikeDictionary(found.block(slice(0, inputs.shape[1])), found.scale))
        return side_by_side(blocks)

    @torch.no_grad()
    def calibrated(self, inputs: Tensor, weight: Tensor, bias: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """``weight [M, F]`` and ``bias [M]``, each unit scaled so that it fires at ``rate`` on ``inputs``."""
        currents = F.linear(inputs, weight, bias)

        def rates(factors: Tensor) -> Tensor:
            return run_neuron(self.neuron, currents * factors).float().mean((0, 1))

        factors = factors_for(rates, len(weight), rate, weight.device)
        return weight * factors[:, None], bias * factors


def side_by_side(dictionaries: Sequence[SpikeDictionary]) -> SpikeDictionary:
    """One dictionary of the columns of several of one scale, on the CPU."""
    counts = [d.counts.cpu() for d in dictionaries]
    dtype = max((c.dtype for c in counts), key=lambda d: (d.is_floating_point, d.itemsize))
    return SpikeDictionary(torch.cat([c.to(dtype) for c in counts], 1), dictionaries[0].scale)


def run_neuron(neuron: Any, currents: Tensor) -> Tensor:
    """Spikes of ``currents [T, N, M]`` from a fresh state."""
    fresh_state(neuron)
    if getattr(neuron, "step_mode", "s") == "m":
        return neuron(currents)
    return torch.stack([neuron(current) for current in currents])


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

    The proof lets the neurons send random spikes: the readout must receive them reduced over time, and the linear layer
    must not notice. Call it inside ``undisturbed``.

    Args:
        module: The network.
        readout: Its readout.
        reduction: The readout's reduction.
        forward: One forward pass.
        inputs: Batches of inputs, on the network's device.
        samples: Bool ``[N]``: the samples to record; None: all.
        backend: Engine of candidates' patterns, see `resolve_backend`; neurons of unknown dynamics are run themselves.
        room: Told what reaches the layer of the first batch, ``[T, n, F]``, before the others are run; it may refuse.

    Raises:
        ValueError: If there is no row; or the last spiking layer is not a linear layer with weights of its own that
            require a gradient, followed by neurons that share their constants, whose spikes alone the readout receives.
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
    with _Recorder(affine, neuron, readout) as recorder:
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
        own = _own_reduction(probed.sent, values * scale, reduction)
        if own is None:
            raise ValueError(
                f"What the readout receives is not the spikes of '{name}' reduced over time (other layers, pooling), "
                f"so the columns that other weights would make are not known. {_INSTEAD}"
            )
        taken, start = [], 0
        for x in chain([first], batches):
            steps = _arrange(recorder.pass_over(module, forward, x), affine, name, affine_name)
            stop = start + steps.shape[1]
            taken.append(steps if samples is None else steps[:, samples[start:stop].to(steps.device)])
            start = stop
    recorded = torch.cat(taken, 1).contiguous()
    return WitnessLayer(affine_name, name, affine, neuron, own, recorded, _constants(neuron, backend), backend)


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


def _check_layer(module: nn.Module, activity: LayerActivity) -> tuple[nn.Linear, nn.Module]:
    """The layer's modules, refusing a layer whose weights cannot be replaced one unit at a time."""
    name, affine_name = activity.name, activity.affine_name
    neuron, affine = module.get_submodule(name), module.get_submodule(affine_name) if affine_name else None
    if not isinstance(affine, nn.Linear):
        found = f"'{affine_name}' ({type(affine).__name__})" if affine_name else "no affine layer"
        raise ValueError(f"The last spiking layer '{name}' is fed by {found}; expected a plain nn.Linear. {_INSTEAD}")
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
    """What the layer's parts received and sent in one forward pass, call by call."""

    received: list[Tensor] = field(default_factory=list)
    currents: list[Tensor] = field(default_factory=list)
    sent: list[Tensor] = field(default_factory=list)
    read: list[Tensor] = field(default_factory=list)


class _Recorder:
    """Records passes; with a ``generator`` the neurons send random spikes."""

    def __init__(self, affine: nn.Module, neuron: nn.Module, readout: nn.Module) -> None:
        self._modules = affine, neuron, readout
        self._pass = _Pass()
        self.generator: torch.Generator | None = None

    def __enter__(self) -> "_Recorder":
        affine, neuron, readout = self._modules
        self._handles = [
            affine.register_forward_pre_hook(lambda _, args: self._pass.received.append(args[0].detach())),
            neuron.register_forward_pre_hook(lambda _, args: self._pass.currents.append(args[0].detach())),
            neuron.register_forward_hook(lambda _, args, spikes: self._send(spikes)),
            readout.register_forward_pre_hook(lambda _, args: self._pass.read.append(args[0].detach())),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _send(self, spikes: Tensor) -> Tensor:
        if self.generator is not None:
            spikes = torch.randint(0, 2, spikes.shape, generator=self.generator).to(spikes)
        self._pass.sent.append(spikes.detach())
        return spikes

    def pass_over(self, module: nn.Module, forward: Forward, x: Any) -> _Pass:
        self._pass = _Pass()
        fresh_state(module)
        forward(x)
        return self._pass


def _arrange(record: _Pass, affine: nn.Linear, name: str, affine_name: str) -> Tensor:
    """The linear layer's inputs ``[T, N, F]``, in whatever order and shape they came."""
    currents = _stack(record.currents)
    received = torch.cat([r.reshape(-1, affine.in_features) for r in record.received])
    if currents.dim() == 3:
        steps, samples, _ = currents.shape
        orders = []
        if len(received) == steps * samples:
            orders = [received.unflatten(0, (steps, samples)), received.unflatten(0, (samples, steps)).transpose(0, 1)]
        elif len(received) == samples:
            orders = [received.expand(steps, *received.shape)]
        for order in orders:
            expected = F.linear(order, affine.weight, affine.bias)
            if expected.shape == currents.shape and _close(expected, currents):
                return order
    raise ValueError(
        f"'{name}' receives something else than the output of '{affine_name}', or not as [time steps, samples, units] "
        f"(found {list(currents.shape)}), so other weights cannot be tried in its place. {_INSTEAD}"
    )


def _stack(calls: list[Tensor]) -> Tensor:
    """``[T, N, P]`` from one call over all steps or from one call a step; other calls are left as they came."""
    alike = all(call.shape == calls[0].shape for call in calls)
    return torch.stack(calls) if alike and (len(calls) > 1 or calls[0].dim() == 2) else calls[0]


def _own_reduction(sent: list[Tensor], rows: Tensor, reduction: Reduction) -> Reduction | None:
    """The reduction that makes ``rows``, which are the readout's, of the neurons' spikes; None if there is none."""
    spikes = _stack(sent)
    candidates = [Reduction(kind, "steps", len(spikes)) for kind in _KINDS]
    if reduction.kind == "weighted":
        candidates = [replace(reduction, layout="steps")]
    for candidate in candidates:
        values, scale = candidate.sum_steps(spikes)
        if values.shape == rows.shape and _close(values * scale, rows):
            return candidate
    return None


def _close(actual: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding, which may be that of half precision; another order or layer is far off."""
    difference = (actual.float() - expected.float()).abs().max()
    return bool(difference <= _ROUNDING * expected.float().abs().max())


def is_initialised(affine: nn.Module) -> bool:
    """Whether a layer's weights and biases can be told from none that its constructor draws.

    Every one of a Linear or Conv layer's is drawn from the uniform distribution over +-1/sqrt(fan_in) (the kaiming
    initialisation of torch, Glorot and He). Weights that are frozen, computed from others, have no bias beside them,
    leave the interval or fail the Kolmogorov-Smirnov test of that distribution at the level 0.001 are somebody's own.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> affine = nn.Linear(20, 30)
        >>> is_initialised(affine), is_initialised(nn.BatchNorm1d(20))
        (True, False)
        >>> with torch.no_grad():
        ...     _ = affine.weight.mul_(0.5)
        >>> is_initialised(affine)
        False
    """
    if not isinstance(affine, (nn.Linear, _ConvNd)):
        return False
    weight, bias = affine._parameters.get("weight"), affine._parameters.get("bias")
    if weight is None or bias is None or not (weight.requires_grad and bias.requires_grad):
        return False
    for parameter in (weight, bias):
        scaled = parameter.detach().double().flatten().cpu() * weight[0].numel() ** 0.5
        if bool((scaled.abs() > 1 + _FLOAT32).any()) or kstest(scaled, "uniform", (-1, 2)).pvalue < _LEVEL:
            return False
    return True


def affine_names(module: nn.Module, forward: Forward, x: Any, readout: nn.Linear) -> list[str]:
    """Names of the Linear and Conv layers that a pass over ``x`` reaches before ``readout``, in order."""
    order = reached(module, forward, x, lambda m: isinstance(m, (nn.Linear, _ConvNd)))
    return [name for name in dict.fromkeys(order) if module.get_submodule(name) is not readout]


def gaussian(kind: GaussianKind, shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """The paper's random witnesses: independent N(0, 1), rows of unit norm, or orthonormal rows.

    More rows than their length cannot all be orthogonal: they are in blocks of that many.

    Args:
        kind: Which of the three.
        shape: ``[M, ...]``, the shape of a weight of M units; the rest of it is one row.
        generator: Source of randomness, on the CPU.

    Example:
        >>> w = gaussian("gaussian_orthogonal", (4, 2), torch.Generator().manual_seed(0))
        >>> (w[:2] @ w[:2].T).round(decimals=3).abs(), w.norm(dim=1)
        (tensor([[1., 0.],
                [0., 1.]]), tensor([1.0000, 1.0000, 1.0000, 1.0000]))
    """
    flat = torch.randn(shape, generator=generator).flatten(1)
    if kind == "gaussian_normalized":
        flat = flat / flat.norm(dim=1, keepdim=True)
    if kind == "gaussian_orthogonal":
        flat = torch.cat([torch.linalg.qr(block.T)[0].T for block in flat.split(flat.shape[1])])
    return flat.reshape(shape)


@torch.no_grad()
def write_gaussian(module: nn.Module, names: Sequence[str], kind: GaussianKind, seed: int) -> None:
    """Write random witnesses into the affine layers called ``names``, and zeros into their biases.

    Raises:
        ValueError: If one of them cannot be written.
    """
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        check_writable(module, name)
        affine: Any = module.get_submodule(name)
        affine.weight.copy_(gaussian(kind, affine.weight.shape, generator))
        if affine.bias is not None:
            affine.bias.zero_()


def pairs(inputs: Tensor, targets: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weights ``[count, F]`` and biases of units whose current is 1 at one training point and -1 at another.

    The points of a pair differ in their targets wherever random pairs allow it.

    Args:
        inputs: ``[T, N, F]``; both points of a pair are taken at the same, random step.
        targets: ``[N, ...]``, a target of each sample.
        count: Number of units.
        generator: Source of randomness, on the CPU.
    """
    steps, samples, _ = inputs.shape
    first, second = torch.randint(samples, (2, 2 * count), generator=generator)
    differ = (
        (targets[first] != targets[second]).flatten(1).any(1)
        if targets.dim() > 1
        else targets[first] != targets[second]
    )
    chosen = differ.int().argsort(descending=True, stable=True)[:count]
    step = torch.randint(steps, (count,), generator=generator)
    a, b = inputs[step, first[chosen]], inputs[step, second[chosen]]
    weight = 2 * (a - b) / (a - b).square().sum(1, keepdim=True).clamp_min(_TINY)
    return weight, -(weight * (a + b)).sum(1) / 2
