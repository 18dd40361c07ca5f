"""What becomes of hidden layers that a reconstruction has changed: which are held, and which nothing trains."""

from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.relays import Relay, prove_relays
from lightning_cvxsnn.network.transaction import Transaction
from lightning_cvxsnn.witnesses.calibration import CalibratedLayer

_TRAINED = 3  # layers that train in front of relays: with fewer a network ends lower, with more it starts slower


def relays_among(network: Network, layers: Sequence[CalibratedLayer]) -> tuple[Relay, ...]:
    """The layers that a start has made to send on spikes, and that are held while those in front of them train.

    Args:
        network: The network. Call this inside ``undisturbed``, in all processes.
        layers: What was done to each layer.
    """
    deep = [Relay(layer.affine_name, layer.name) for layer in layers if layer.copies and layer.below >= _TRAINED]
    return network.rows.ranks.exchange(prove_relays(network, deep))[0]


def tell_untrained(network: Network, transaction: Transaction, optimizers: Sequence[Optimizer]) -> None:
    """Warn of hidden parameters that were changed though no optimiser trains them: a reservoir, perhaps."""
    trained = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    left = {id(p) for p in transaction.changed()} - trained - {id(p) for p in network.readout.parameters}
    names = [name for name, p in network.module.named_parameters() if id(p) in left]
    if trained and names:
        rank_zero_warn(
            f"ConvexReconstruction changed hidden parameters that no optimizer trains: {', '.join(names)}. If they are "
            "meant to stay as they are, use witnesses='keep', or freeze them by requires_grad_(False)."
        )
