"""What becomes of a solution on each occasion: how far training is drawn to it, whether it is shown, and its scale."""

from dataclasses import dataclass
from typing import Literal

from lightning_cvxsnn.convex.losses import loss_named
from lightning_cvxsnn.reconstruction.settings import Settings

Occasion = Literal["warm start", "periodic solve", "final solve", "single solve"]

#: How far a trained readout is drawn towards each periodic solution.
RELAXATION = 0.3
#: Factor on a readout that training goes on from as a whole: decisions stay, and the hidden layers keep a gradient.
CONTINUE_SCALE = 0.3
#: Relative gap of what is shown for an epoch; what stays in the network is solved to ``gap_tolerance``.
SHOWN_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Policy:
    """What the settings say of one occasion.

    Attributes:
        settings: The arguments.
        occasion: Why a solve is made now.
        watched: Whether something in the fit compares validations: it is to see trained readouts only.
    """

    settings: Settings
    occasion: Occasion
    watched: bool = False

    @property
    def may_change_hidden(self) -> bool:
        """Whether hidden weights may be calibrated or replaced: no training step has changed them yet."""
        return self.occasion in ("warm start", "single solve")

    @property
    def starts_training(self) -> bool:
        """Whether ``witnesses="auto"`` may prefer other hidden weights: training goes on from them."""
        return self.occasion == "warm start" and self.settings.apply != "shadow"

    @property
    def replaces(self) -> bool:
        """Whether the readout becomes the solution, and nothing else is kept."""
        return self.settings.apply == "replace" or self.occasion == "single solve"

    @property
    def shows(self) -> bool:
        """Whether a solution stands in until the next training step, for validation and checkpoints."""
        if self.replaces:
            return False
        return not (self.watched and self.settings.apply == "auto" and self.occasion == "periodic solve")

    @property
    def relaxation(self) -> float:
        """How far the readout that is trained on is drawn towards a solution: 0 not at all, 1 it is the solution."""
        if self.replaces:
            return 1.0
        if self.settings.apply == "shadow" or self.occasion == "final solve":
            return 0.0
        if self.settings.relaxation != "auto":
            return float(self.settings.relaxation)
        return RELAXATION if self.occasion == "periodic solve" else 0.0

    @property
    def draws_to_steady(self) -> bool:
        """Whether only solutions are drawn to that answer nearly the same once training has moved some spikes."""
        return self.settings.relaxation == "auto" and 0 < self.relaxation < 1

    @property
    def scale(self) -> float:
        """Factor on the solution as written."""
        if self.settings.scale != "auto":
            return float(self.settings.scale)
        trained_on = self.settings.apply == "replace" and self.occasion in ("warm start", "periodic solve")
        # A factor keeps decisions, but would spoil values.
        return CONTINUE_SCALE if trained_on and loss_named(self.settings.loss).decides else 1.0

    @property
    def tolerance(self) -> float:
        """Relative gap to reach."""
        shown_only = self.shows and self.occasion != "final solve"
        return max(self.settings.gap_tolerance, SHOWN_TOLERANCE) if shown_only else self.settings.gap_tolerance
