"""Hidden parameters that a reconstruction has changed, and that nothing trains."""

from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.transaction import Transaction


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
