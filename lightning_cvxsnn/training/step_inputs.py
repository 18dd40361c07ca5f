"""Does ``training_step`` give the network what the callback captures it with?

A module that transposes, casts, normalises or encodes in ``training_step`` trains on other spikes than its forward
shows, and a solution over those would make it worse. So the first batch goes through both, with one seed, in eval mode
and without a trace, and what each linear and convolutional layer receives is compared.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_cvxsnn.network.isolation import forward_of, reset_neurons
from lightning_cvxsnn.network.loader import seed_generators
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.rows import unpack

_DEVIATION = 1e-2  # mean, relative to the mean size: some spikes may flip where sums round differently
_RANDOM = 2.0  # times what another seed of a random encoder changes


class _Enough(BaseException):
    """The step has shown what it gives the network; nothing behind its forward is run."""


Calls = dict[str, list[Tensor]]  # what each layer received, by its dotted name, call by call


def check_step_inputs(trainer: "pl.Trainer", network: Network) -> None:
    """Refuse a module whose ``training_step`` gives the network other inputs than its forward gets from the callback.

    Call it inside ``undisturbed`` and ``isolate_rng``. Nothing behind the step's forward is run where the two agree: no
    loss, no metric, no optimiser.

    Args:
        trainer: The Trainer, whose loggers and precision the step is given.
        network: The network, in eval mode.

    Raises:
        MisconfigurationException: Naming the layer that receives something else, and what to define.
    """
    module, batch = network.module, network.rows.raw()
    x = unpack(module, batch).x
    counts: dict[str, int] = {}  # calls until the readout has received all: what other readouts get comes later

    def count(received: Calls) -> None:
        counts.update({name: len(calls) for name, calls in received.items()})

    expected = _record(network, lambda: forward_of(module)(x), seed=0, stop=count)
    again = _record(network, lambda: forward_of(module)(x), seed=1)
    allowed = {
        name: _RANDOM * max((_deviation(a, b) for a, b in zip(calls, again.get(name, []), strict=False)), default=0.0)
        for name, calls in expected.items()
    }
    differing = f"'{network.readout.name}', which it does not reach"

    def agrees(received: Calls) -> bool:
        nonlocal differing
        for name, count in counts.items():
            calls = received.get(name, [])[-count:]
            if difference := _difference(expected[name][:count], calls, allowed[name]):
                differing = f"'{name}', {difference}"
                return False
        return True

    def stop(received: Calls) -> None:
        if len(received[network.readout.name]) >= counts[network.readout.name]:
            matched = agrees(received)
            if matched or not module.automatic_optimization:
                raise _Enough(matched)

    try:
        with _quiet_loggers(trainer), torch.enable_grad():
            _record(network, _step(module, batch), seed=0, stop=stop)
    except _Enough as enough:
        if enough.args[0]:
            return
    except Exception:
        return  # training will meet the same error, in the open
    method = f"{type(module).__name__}.{'convex_forward' if hasattr(module, 'convex_forward') else 'forward'}"
    raise MisconfigurationException(
        f"For the first training batch `training_step` gives the network other inputs than `{method}` gets from the "
        f"callback: they differ first at {differing}. So the spikes that are solved over would not be those that are "
        "trained on. Expected the same; define `convex_batch(self, batch)` that returns (x, y) with x transposed, "
        "cast, normalised or encoded as in `training_step`, or `convex_forward(self, x)` that does so."
    )


def _step(module: Any, batch: Any) -> Callable[[], Any]:
    """The module's step on ``batch``, as Lightning calls it."""
    two = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    return lambda: module.training_step(batch, 0) if two else module.training_step(batch)


def _record(
    network: Network, run: Callable[[], Any], *, seed: int, stop: Callable[[Calls], None] = lambda received: None
) -> Calls:
    """What the affine layers receive in ``run``; ``stop`` is called each time the readout has received something."""
    received: Calls = {}
    readout = network.readout.module

    def note(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            received.setdefault(name, []).append(args[0].detach())
            if module is readout:
                stop(received)

    handles = [
        layer.register_forward_pre_hook(lambda module, args, name=name: note(name, module, args))
        for name, layer in network.module.named_modules()
        if isinstance(layer, (nn.Linear, _ConvNd))
    ]
    try:
        reset_neurons(network.module)
        seed_generators(seed)
        run()
    finally:
        for handle in handles:
            handle.remove()
    return received


def _deviation(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference, relative to the mean size of ``a``; infinite between tensors of different shapes."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.double(), b.double()
    return float((a - b).abs().mean() / a.abs().mean().clamp_min(1e-12))


def _difference(expected: list[Tensor], found: list[Tensor], allowed: float) -> str:
    """How two rows of calls differ, in words; "" if they do not."""
    if len(found) < len(expected):
        return f"called {len(found)} times against {len(expected)}"
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return f"with shape {list(b.shape)} against {list(a.shape)}"
        if _deviation(a, b) > _DEVIATION + allowed:
            return f"by {_deviation(a, b):.0%} of their mean size"
    return ""


@contextmanager
def _quiet_loggers(trainer: "pl.Trainer") -> Iterator[None]:
    """Drop what is sent to ``self.logger.experiment`` in this context."""
    loggers = trainer.loggers
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers
