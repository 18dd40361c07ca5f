"""Does ``training_step`` give the network what the callback captures it with?

A module that transposes, casts, normalises or encodes in ``training_step`` trains on other spikes than its forward
shows, and a solution over those would make it worse. So the first batch goes through both, with one seed, in eval mode
and without a trace, and what each linear and convolutional layer receives is compared.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_cvxsnn.network.contents import put_back
from lightning_cvxsnn.network.isolation import forward_of, reset_neurons
from lightning_cvxsnn.network.loader import seed_generators
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.rows import unpack
from lightning_cvxsnn.network.transaction import Transaction

_DEVIATION = 1e-2  # mean, relative to the mean size: some spikes may flip where sums round differently
_LEFT_OUT = 8  # batches that a step may leave out before the first that it trains on
_RANDOM = 2.0  # times what another seed of a random encoder changes


class _Enough(BaseException):
    """The step has shown what it gives the network; nothing behind its forward is run."""


Calls = dict[str, list[Tensor]]  # what each layer received, by its dotted name, call by call


def check_step_inputs(trainer: "pl.Trainer", network: Network) -> None:
    """Refuse a module whose ``training_step`` gives the network other inputs than its forward gets from the callback.

    Call it inside ``undisturbed`` and ``isolate_rng``. Nothing behind the step's forward is run where the two agree: no
    loss, no metric; and nothing is trained.

    Args:
        trainer: The Trainer, whose loggers and precision the step is given.
        network: The network, in eval mode.

    Raises:
        MisconfigurationException: Naming the layer that receives something else, and what to define.
    """
    module = network.module
    with _rehearsal(trainer, module):
        for index, batch in enumerate(islice(network.rows.raw(), _LEFT_OUT)):
            differing = _difference_of_step(network, batch, index)
            if differing == "":
                return
            if differing is not None:
                break
    if differing is None:
        raise MisconfigurationException(
            f"`training_step` returned None for each of the first {index + 1} training batches, and none reached "
            f"'{network.readout.name}'. Expected that one of them is trained on; is what it waits for set before "
            "training, such as in `on_train_start`?"
        )
    method = f"{type(module).__name__}.{'convex_forward' if hasattr(module, 'convex_forward') else 'forward'}"
    raise MisconfigurationException(
        f"For the first training batch `training_step` gives the network other inputs than `{method}` gets from the "
        f"callback: they differ first at {differing}. So the spikes that are solved over would not be those that are "
        "trained on. Expected the same; define `convex_batch(self, batch)` that returns (x, y) with x transposed, "
        "cast, normalised or encoded as in `training_step`, or `convex_forward(self, x)` that does so."
    )


def _difference_of_step(network: Network, batch: Any, index: int) -> str | None:
    """Where the step gives the network something else, in words; "" where it does not, None where it leaves out."""
    module, readout = network.module, network.readout.name
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
    differing = ""

    def stop(received: Calls) -> None:
        nonlocal differing
        if len(received[readout]) >= counts[readout]:
            differing = ""
            for name, count in counts.items():
                calls = received.get(name, [])[-count:]
                if difference := _difference(expected[name][:count], calls, allowed[name]):
                    differing = f"'{name}', {difference}"
                    break
            if not differing or not module.automatic_optimization:
                raise _Enough

    returned: list[Any] = []
    try:
        with torch.enable_grad():
            received = _record(network, lambda: returned.append(_step(module, batch, index)), seed=0, stop=stop)
    except _Enough:
        return differing
    except Exception:
        return ""  # training will meet the same error, in the open
    if readout not in received and returned == [None]:
        return None
    return differing or f"'{readout}', which it does not reach"


@contextmanager
def _rehearsal(trainer: "pl.Trainer", module: nn.Module) -> Iterator[None]:
    """Loggers log nothing and optimisers take no step; what the step does to them, or to parameters, is put back."""
    optimizers = [*trainer.optimizers, *trainer.strategy._lightning_optimizers]
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    parameters = [(p, p.requires_grad) for p in module.parameters()]
    loggers = trainer.loggers
    transaction = Transaction(module, trainer.optimizers)
    with put_back([*optimizers, *schedules], known=module.parameters()):
        trainer.loggers = [DummyLogger() for _ in loggers]
        vars(module)["manual_backward"] = _nothing  # `undisturbed` puts it back
        for optimizer in optimizers:
            vars(optimizer)["step"] = _call_closure
        try:
            yield
        finally:
            trainer.loggers = loggers
            transaction.roll_back()
            for parameter, trains in parameters:
                parameter.requires_grad_(trains)


def _nothing(*_: object, **__: object) -> None:
    """Do nothing."""


def _call_closure(closure: Callable[[], Any] | None = None, **_: object) -> Any:
    """Take no step."""
    return None if closure is None else closure()


def _step(module: Any, batch: Any, index: int) -> Any:
    """Call the module's step on ``batch``, as Lightning does."""
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        return module.training_step(iter([(batch, index, 0)]))
    two = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    return module.training_step(batch, index) if two else module.training_step(batch)


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
