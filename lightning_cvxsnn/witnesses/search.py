"""A search for witnesses: how hard it tries, what proposes them, what it finds.

Column generation needs little of what it chooses from. A proposer draws hidden weights and knows the columns they make;
there is one for the units of a layer and one for whole branches.
"""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from lightning_cvxsnn.convex import Solution
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.witnesses.restricted import RestrictedMaster, RhoPath


@dataclass(frozen=True)
class SearchSettings:
    """How hard a search tries.

    Attributes:
        rounds: Rounds at most.
        drawn: Candidates of a round, times the units, or the branches, of the network.
        mutated: Share of the candidates that vary witnesses in use.
        mutation: Size of the noise on their weights, relative to these.
        rho_range: First and last rho, relative to the largest of the first dictionary.
    """

    rounds: int
    drawn: int
    mutated: float
    mutation: float
    rho_range: tuple[float, float]


class HiddenWeights(Protocol):
    """Hidden weights and the columns they make."""

    @property
    def columns(self) -> SpikeDictionary:
        """``[n, P]``."""


W = TypeVar("W", bound=HiddenWeights)


@dataclass(frozen=True)
class SearchStatistics:
    """What a search tried.

    Attributes:
        candidates: Units tried.
        violation: Largest ``|d^T U| / rho`` of the last candidates' columns; above 1, they lower the objective. None if
            none were needed or scored.
    """

    candidates: int
    violation: float | None


@dataclass(frozen=True, eq=False)
class SearchResult(Generic[W]):
    """What a search found.

    Attributes:
        chosen: The witnesses to write.
        solution: A point over the network's columns once these are written: the last solution, and zeros for columns
            that came after it.
        rho: Its penalty.
        objectives: Objective of each solve that began or ended a round.
        statistics: What was tried.
        candidate_passes: Candidates times samples run forward; a step of the ascent counts as three passes.
    """

    chosen: W
    solution: Solution
    rho: float
    objectives: list[float]
    statistics: SearchStatistics
    candidate_passes: int


@dataclass(frozen=True, eq=False)
class Master(Generic[W]):
    """The witnesses in use and the solution of the programme over their columns."""

    witnesses: W
    solution: Solution


@dataclass(frozen=True, eq=False)
class Improvement(Generic[W]):
    """What a round leaves.

    Attributes:
        witnesses: Those in use, and those added.
        point: Where the next solve starts; its columns are the first ones. The solution itself if ``solved``.
        violation: Largest ``|d^T U| / rho`` of the candidates' columns; None if none were scored.
        solved: Whether ``point`` solves the programme over all of the columns.
        final: Whether the search ends here.
    """

    witnesses: W
    point: Solution
    violation: float | None = None
    solved: bool = False
    final: bool = False


class Proposer(Protocol[W]):
    """Proposes witnesses and decides which of them join those in use."""

    @property
    def programme(self) -> RestrictedMaster:
        """The programme they are chosen for."""

    @property
    def settings(self) -> SearchSettings:
        """How hard to try."""

    @property
    def width(self) -> int:
        """Units of the network."""

    @property
    def seed(self) -> int:
        """Seed of the candidates."""

    @property
    def candidates(self) -> int:
        """Units proposed so far."""

    @property
    def candidate_passes(self) -> int:
        """Candidates times samples run forward so far."""

    @property
    def indistinct(self) -> str:
        """What to say where no first witness tells the training rows apart."""

    def initial(self) -> W:
        """The first witnesses of a search."""

    def improve(self, master: Master[W], path: RhoPath, index: int) -> Improvement[W]:
        """One round: candidates that the dual point asks for join the witnesses in use.

        Args:
            master: The restricted programme, solved.
            path: Its penalty, and whether that falls further.
            index: How many rounds have been before.
        """

    def write(self, network: Network, found: SearchResult[W]) -> None:
        """Write what a search has chosen into the network, in place; its batch norms are estimated anew."""
