"""Which hidden layers are held while the others train."""

from collections.abc import Sequence

from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.relays import Relay, find_relays, prove_relays
from lightning_cvxsnn.reconstruction.policy import Policy
from lightning_cvxsnn.witnesses.calibration import CalibratedLayer

_TRAINED = 3  # layers that train in front of relays, see benchmarks/relays.py


def relays_to_hold(
    network: Network, present: Sequence[Relay], policy: Policy, layers: Sequence[CalibratedLayer]
) -> tuple[Relay, ...]:
    """The layers that are held from now on: found at the warm start, and then those of them that still are relays.

    Args:
        network: The network, with the hidden weights that it keeps. Call this inside ``undisturbed``, in all processes.
        present: Those that were held so far.
        policy: The occasion and the settings.
        layers: What was done to hidden layers. A shadow over layers of the user's own leaves training as it is.
    """
    settings, found = policy.settings, tuple(present)
    if policy.occasion != "warm start":
        found = prove_relays(network.module, present, network.first().x) if present else ()
    elif settings.dry_run or settings.witnesses in ("keep", "calibrated"):
        found = ()
    elif layers or settings.apply != "shadow":
        found = find_relays(network, _TRAINED)
    return network.rows.ranks.exchange(found)[0]
