"""What each stage of a reconstruction hands to the next."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_cvxsnn.convex import Solution
from lightning_cvxsnn.network.programme import Penalty
from lightning_cvxsnn.network.relays import Relay
from lightning_cvxsnn.reconstruction.guard import Judgement, Score
from lightning_cvxsnn.witnesses.calibration import CalibratedLayer
from lightning_cvxsnn.witnesses.search import SearchStatistics


@dataclass(frozen=True, eq=False)
class Prepared:
    """Stage one: hidden weights that are ready to be solved over.

    Attributes:
        found: What the network scored as found, on the rows that judge, where hidden weights or batch norms have
            changed since; None elsewhere, and in all processes but rank 0.
        replaced: Whether hidden weights were given new values, to be taken back if the solution is rejected.
        tensors: Parameters and neuron constants with the values that they had, if they were replaced.
        layers: What was done to layers that keep their weights but for factors and biases.
        search: What a search for witnesses tried; None without one, and in all processes but rank 0.
    """

    found: Score | None
    replaced: bool
    tensors: list[tuple[Tensor, Tensor]]
    layers: list[CalibratedLayer]
    search: SearchStatistics | None


@dataclass(frozen=True, eq=False)
class Solved:
    """Stages two and three: a solution, and the verdict of the held-out rows on it.

    Attributes:
        solution: Fitted on all training rows if it was accepted or none of them judge, else on those that do not.
        judgement: The verdict.
        judge: The rows that gave it.
        penalty: The penalty.
        edge: The end of its grid at which beta was chosen, if it was.
        fitted: Bool ``[n]``, the rows of the programme; None: all.
    """

    solution: Solution
    judgement: Judgement
    judge: str
    penalty: Penalty
    edge: Literal["largest", "smallest"] | None
    fitted: Tensor | None


@dataclass(frozen=True)
class Outcome:
    """What the report says of the solve itself: plain numbers, which rank 0 tells the other processes."""

    judgement: Judgement
    judge: str
    penalty: Penalty
    edge: Literal["largest", "smallest"] | None
    relaxation: float
    primal: float
    dual: float
    gap: float
    gap_written: float
    rows: int
    columns: int
    distinct: int
    silent: int
    saturated: int
    active: int

    @property
    def accepted(self) -> bool:
        """Whether the solution is better than what the network had."""
        return self.judgement.accepted

    @property
    def written(self) -> bool:
        """Whether the solution is shown, or what is trained on is drawn to it."""
        return self.accepted or self.relaxation > 0


@dataclass(frozen=True, eq=False)
class Finished:
    """All that the stages did.

    Attributes:
        outcome: Of the solve.
        layers: Layers that keep their weights but for factors and biases, in the network as it is left.
        search: What a search for witnesses tried; None without one.
        relays: Layers that are held while the others train.
        seconds_patterns: Wall-clock seconds of the pattern passes.
        seconds_solve: Of the rest.
    """

    outcome: Outcome
    layers: list[CalibratedLayer]
    search: SearchStatistics | None
    relays: tuple[Relay, ...]
    seconds_patterns: float
    seconds_solve: float
