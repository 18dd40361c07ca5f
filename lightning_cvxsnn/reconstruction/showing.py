"""What a network shows until training goes on: a solution, or the network that was shown before."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.transaction import Transaction
from lightning_cvxsnn.reconstruction.guard import Score
from lightning_cvxsnn.reconstruction.policy import Policy
from lightning_cvxsnn.reconstruction.shadow import Shadow, named_tensors
from lightning_cvxsnn.reconstruction.stages import Outcome


@torch.no_grad()
def lay_out(network: Network, transaction: Transaction, outcome: Outcome, policy: Policy) -> Shadow | None:
    """Put what is shown into a readout that holds the solution, and keep what training goes on from.

    Args:
        network: The network, with the solution in its readout.
        transaction: What it held before.
        outcome: Of the solve.
        policy: What becomes of it.

    Returns:
        What is shown with what training goes on from; None: they are the same.
    """
    written, shadow = network.readout.parameters, None
    only_readout = all(any(p is own for own in written) for p in transaction.changed())
    trained = {id(p): torch.lerp(transaction.found(p), p, outcome.relaxation) for p in written}
    stand_ins: list[Tensor] = []
    if policy.shows:
        stand_ins = [*written, *(network.statistics if only_readout and outcome.accepted else [])]
    for p in written:
        if not policy.shows:
            p.copy_(trained[id(p)])
        elif not outcome.accepted:
            p.copy_(transaction.found(p))
    if stand_ins:
        # Of hidden weights as found the statistics are those of training, too.
        shadow = Shadow.of(network.module, stand_ins, lambda t: trained.get(id(t), transaction.found(t)))
    kept = [] if policy.replaces else written  # a readout that is drawn keeps its optimiser state
    transaction.forget_history(p for p in transaction.changed() if not any(p is own for own in kept))
    return shadow


@dataclass(frozen=True, eq=False)
class Shown:
    """A whole network as it was shown after a solve.

    Attributes:
        values: Parameters, statistics of adapting batch norms and constants of neurons by dotted name, on the CPU.
        others: The other buffers, which only the user's code changes.
        score: On the validation rows.
        epoch: Epochs finished at that solve.
    """

    values: dict[str, Tensor]
    others: dict[str, Tensor]
    score: Score
    epoch: int

    @classmethod
    def of(cls, network: Network, score: Score, epoch: int) -> "Shown":
        """The network as it is."""
        own, others = map(_copied, _named(network))
        return cls(own, others, score, epoch)

    def beats(self, network: Network, score: Score) -> bool:
        """Whether it scores better than the network does, and can take its place."""
        own, others = _named(network)
        fits = {name: t.shape for name, t in own.items()} == {name: t.shape for name, t in self.values.items()}
        fits = fits and others.keys() == self.others.keys()
        return fits and self.score.beats(score) and all(torch.equal(t.cpu(), self.others[n]) for n, t in others.items())


class Showing:
    """What a network shows between training steps, from one solve to the next.

    Attributes:
        shadow: What is shown, with what training goes on from where that is something else; None: it is not.
        best: The network that was shown last; None: there is none, or training has passed it.
        told: Epoch of the network of which a person has been told that it is still shown; -1: of none.
        touched: Whether somebody has changed an earlier network while it was shown: none is shown again.
    """

    def __init__(self) -> None:
        self.shadow: Shadow | None = None
        self.begin()

    def begin(self) -> None:
        """Another fit."""
        self.best: Shown | None = None
        self.told, self.touched = -1, False
        self._next: dict[str, Tensor] | None = None

    def train(self) -> None:
        """A step of training changes the network."""
        self.shadow = self._next = None

    def leave(self, module: nn.Module, *, training: bool = False) -> None:
        """Put back what training goes on from; while it is ``training``, what somebody else wrote does not count."""
        if self.shadow is None:
            return
        anyway = training and self.shadow.whole
        untouched = self.shadow.leave(module, anyway=anyway)
        if training:  # whoever changes weights from here on changes those in training
            self.shadow = None
        if untouched or not anyway:
            return
        self.best, self.touched = None, True
        rank_zero_warn(
            "Something has changed the weights of an earlier network that ConvexReconstruction showed after an epoch. "
            "The change is lost, since training goes on from its own weights, and no earlier network is shown from "
            "here on. Expected changes while a batch is trained or as an epoch starts."
        )

    def judge(self, network: Network, score: Score | None, epoch: int, *, solved: bool) -> int | None:
        """Whether an earlier network is better than the present one on the validation rows: `lay` then shows it.

        Args:
            network: The network. Call this in all processes.
            score: Its own; None: validation rows do not judge.
            epoch: Epochs finished.
            solved: Whether it shows a solution, to be shown on in its turn.

        Returns:
            The epoch of the earlier network; None: the present one is shown.
        """
        best, score = self.best, None if self.touched else score
        if score is not None and not math.isfinite(score.loss):
            score = Score(math.inf, None)  # whatever decisions it may still make
        if score is not None and best is not None and all(network.rows.ranks.exchange(best.beats(network, score))):
            if not solved and self.told != best.epoch:
                rank_zero_info(
                    f"ConvexReconstruction goes on showing the network of epoch {best.epoch} until training has passed "
                    f"it. On validation rows it has {best.score}, the one in training {score}."
                )
                self.told = best.epoch
            self._next = best.values
            return best.epoch
        self.best = Shown.of(network, score, epoch) if score is not None and solved else None
        return None

    @torch.no_grad()
    def lay(self, module: nn.Module) -> None:
        """Put the earlier network that is to be shown into the module, once all others are done with the last batch."""
        if self._next is None:
            return
        values, self._next = self._next, None
        present = {name: t for name, t in named_tensors(module) if name in values}
        trained = _copied(present) | (self.shadow.trained if self.shadow else {})
        for name, tensor in present.items():
            tensor.copy_(values[name])
        self.shadow = Shadow(trained, values, whole=True)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint, of which `best` and `shadow` share some."""
        told = {"told": self.told, "touched": self.touched}
        shadow = {} if self.shadow is None else {"shadow": self.shadow.state_dict()}
        best = {} if self.best is None else {"best": vars(self.best) | {"score": asdict(self.best.score)}}
        return told | shadow | best

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.shadow = Shadow(**state["shadow"]) if "shadow" in state else None
        self.told, self.touched = state.get("told", -1), state.get("touched", False)
        self.best = None
        if "best" in state:
            self.best = Shown(**state["best"] | {"score": Score(**state["best"]["score"])})


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _named(network: Network) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What makes the network answer as it does, and its other buffers, by dotted name."""
    ours = {id(buffer) for buffer in (*network.statistics, *network.constants)}
    own: dict[str, Tensor] = dict(network.module.named_parameters())
    others: dict[str, Tensor] = {}
    for name, buffer in network.module.named_buffers():
        (own if id(buffer) in ours else others)[name] = buffer
    return own, others
