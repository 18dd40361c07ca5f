"""The programme of a network as it is, and the rows that judge its solution."""

import math
from collections.abc import Callable

from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import CapturedProgramme, capture_programme
from lightning_cvxsnn.network.rows import TrainingRows
from lightning_cvxsnn.reconstruction.context import TrainerContext
from lightning_cvxsnn.reconstruction.guard import Judges, Score
from lightning_cvxsnn.reconstruction.settings import Settings

#: Makes the validation rows, which may turn out to be none that can judge.
Validation = Callable[[], TrainingRows]


class Captures:
    """Passes over training and validation rows; remembers where the latter cannot judge.

    Args:
        settings: The arguments.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._told = False  # that the validation rows cannot judge

    def take(
        self, network: Network, context: TrainerContext, stage: str, validation: Validation | None
    ) -> tuple[CapturedProgramme | None, Judges | None]:
        """The programme of the network as it is and the rows that judge, on rank 0; None elsewhere."""
        judging = self._judging(network, context, stage, validation)
        programme = self._programme(network, context, stage)
        return programme, None if programme is None else self._judges(network, programme, judging)

    def judges(
        self, network: Network, context: TrainerContext, stage: str, validation: Validation | None
    ) -> Judges | None:
        """The rows that judge, on rank 0, as the network answers them; the training rows only if they judge, too."""
        judging = self._judging(network, context, stage, validation)
        judges = None if judging is None else self._judges(network, None, judging)
        if network.rows.ranks.exchange(judges is not None and judges.kind == "validation")[0]:
            return judges
        programme = self._programme(network, context, stage)
        return None if programme is None else self._judges(network, programme, judging)

    def score(self, network: Network, context: TrainerContext, validation: Validation | None) -> Score | None:
        """What the network scores on the validation rows, in all processes; None where these do not judge.

        Where training has diverged the loss is infinite.
        """
        if not all(bool(p.isfinite().all()) for p in network.module.parameters()):
            return Score(math.inf, None)
        judges = self.judges(network, context, "patterns", validation)
        own = judges.found() if judges is not None and judges.kind == "validation" else None
        return network.rows.ranks.exchange(own)[0]

    def _judges(
        self,
        network: Network,
        programme: CapturedProgramme | None,
        judging: tuple[CapturedProgramme, TrainingRows] | None,
    ) -> Judges:
        return Judges.of(network, programme, judging, alone=self.settings.judge == "validation")

    def _programme(
        self, network: Network, context: TrainerContext, stage: str, rows: TrainingRows | None = None
    ) -> CapturedProgramme | None:
        settings = self.settings
        return capture_programme(
            network, loss=settings.loss, seed=settings.seed, progress=context.progress, stage=stage, rows=rows
        )

    def _judging(
        self, network: Network, context: TrainerContext, stage: str, validation: Validation | None
    ) -> tuple[CapturedProgramme, TrainingRows] | None:
        """The programme over the validation rows and these, on rank 0, if they judge and can be read."""
        if validation is None or self.settings.judge == "train" or self._told:
            return None
        try:
            rows = validation()
            judging = self._programme(network, context, f"{stage}, validation", rows)
        except Exception as error:  # whatever the user's loader or forward raises
            if self.settings.judge == "validation" or network.rows.ranks.size > 1:
                raise MisconfigurationException(
                    f"The validation rows cannot judge: {error} Use judge='train' to leave them out."
                ) from error
            self._told = True
            rank_zero_info(f"ConvexReconstruction judges by held-out training rows, not validation rows. {error}")
            return None
        return None if judging is None else (judging, rows)
