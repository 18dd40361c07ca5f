"""What becomes of a solution on each occasion: whether training goes on from it, and at which scale."""

from dataclasses import dataclass
from typing import Literal

from lightning_cvxsnn.convex.losses import loss_named
from lightning_cvxsnn.reconstruction.settings import Settings

Occasion = Literal["warm start", "periodic solve", "final solve", "single solve"]

#: Factor on a readout that training goes on from: decisions stay, and the hidden layers keep a gradient.
CONTINUE_SCALE = 0.3
#: The same of a start at a beta of its own, which fits less.
START_SCALE = 0.7


@dataclass(frozen=True)
class Policy:
    """What the settings say of one occasion."""

    settings: Settings
    occasion: Occasion

    @property
    def may_change_hidden(self) -> bool:
        """Whether hidden weights may be calibrated or replaced: no training step has changed them yet."""
        return self.occasion in ("warm start", "single solve")

    @property
    def shadows(self) -> bool:
        """Whether a solution stands in between two training steps and is not trained on."""
        apply = self.settings.apply
        if apply == "auto":  # a start is there to be trained on
            apply = "shadow" if self.occasion in ("periodic solve", "final solve") else "replace"
        return apply == "shadow" and self.occasion != "single solve"

    @property
    def trains_on(self) -> bool:
        """Whether training goes on from a solution."""
        return self.occasion in ("warm start", "periodic solve") and not self.shadows

    @property
    def recycles(self) -> bool:
        """Whether units that the readout does not use get new hidden weights, which training then goes on from."""
        return self.settings.witnesses == "priced" and self.occasion == "periodic solve" and self.trains_on

    def chooses_start_beta(self, beta: float | None) -> bool:
        """Whether this solve chooses a beta that holds for the start of training only; for losses of decisions.

        Args:
            beta: That of all solves; None: not chosen yet.
        """
        chooses = beta is None and loss_named(self.settings.loss).decides
        return chooses and self.occasion == "warm start" and self.trains_on

    def scale(self, beta: float | None) -> float:
        """Factor on the readout as written.

        Args:
            beta: As for `chooses_start_beta`.
        """
        if self.settings.scale != "auto":
            return float(self.settings.scale)
        if not loss_named(self.settings.loss).decides or not self.trains_on:
            return 1.0  # a factor keeps decisions, but would spoil values
        return START_SCALE if self.chooses_start_beta(beta) else CONTINUE_SCALE
