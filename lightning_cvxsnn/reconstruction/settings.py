"""The arguments that the callback and `reconstruct` share, checked once."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Literal, get_args

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_cvxsnn.convex import Loss
from lightning_cvxsnn.patterns import Backend
from lightning_cvxsnn.witnesses.kinds import Witnesses, WitnessOptions

Apply = Literal["auto", "replace", "shadow"]
Judge = Literal["auto", "train", "validation"]


@dataclass(frozen=True)
class Settings:
    """Validated arguments; see `ConvexReconstruction` for what each one means.

    Raises:
        MisconfigurationException: On construction, for a value that is wrong.
    """

    loss: Loss = "cross_entropy"
    l1_ratio: float | Literal["auto"] = "auto"
    beta: float | Literal["auto"] = "auto"
    readout: str | None = None
    witnesses: Witnesses = "auto"
    warm_start: bool = True
    every_n_epochs: int = 1
    final_solve: bool = True
    apply: Apply = "auto"
    relaxation: float | Literal["auto"] = "auto"
    scale: float | Literal["auto"] = "auto"
    max_overhead: float | None = 0.1
    judge: Judge = "auto"
    gap_tolerance: float = 1e-6
    max_samples: int | None = None
    backend: Backend = "auto"
    dry_run: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"loss": Loss, "witnesses": Witnesses, "apply": Apply, "judge": Judge, "backend": Backend}
        for name, literal in choices.items():
            value, allowed = getattr(self, name), get_args(literal)
            if value not in allowed:
                raise MisconfigurationException(f"Invalid value {name}={value!r}. Expected one of {list(allowed)}.")
        for name in ("beta", "scale"):
            value = getattr(self, name)
            if value != "auto" and not (_is_number(value) and 0 < value < float("inf")):
                raise MisconfigurationException(
                    f"Invalid value {name}={value!r}. Expected a positive number or 'auto'."
                )
        for name in ("l1_ratio", "relaxation"):
            value = getattr(self, name)
            if value != "auto" and not (_is_number(value) and 0 <= value <= 1):
                raise MisconfigurationException(
                    f"Invalid value {name}={value!r}. Expected a number from 0 to 1, or 'auto'."
                )
        if self.apply != "auto" and self.relaxation != "auto":
            raise MisconfigurationException(
                f"Found relaxation={self.relaxation!r} with apply={self.apply!r}, which draws the trained readout "
                f"{'all the way' if self.apply == 'replace' else 'nowhere'}. Use apply='auto', or no relaxation."
            )
        if not (_is_number(self.gap_tolerance) and 0 < self.gap_tolerance < 1):
            raise MisconfigurationException(
                f"Invalid value gap_tolerance={self.gap_tolerance!r}. Expected a number between 0 and 1, such as 1e-6: "
                "the duality gap relative to the objective of the best constant predictor."
            )
        for name, least in (("every_n_epochs", 0), ("seed", 0)):
            value = getattr(self, name)
            if not _is_int(value) or value < least:
                raise MisconfigurationException(f"Invalid value {name}={value!r}. Expected an integer >= {least}.")
        if self.max_samples is not None and (not _is_int(self.max_samples) or self.max_samples < 5):
            raise MisconfigurationException(
                f"Invalid value max_samples={self.max_samples!r}. Expected an integer >= 5, or None for all rows."
            )
        if self.max_overhead is not None and not (_is_number(self.max_overhead) and self.max_overhead > 0):
            raise MisconfigurationException(
                f"Invalid value max_overhead={self.max_overhead!r}. Expected a positive share of training work, such "
                "as 0.1, or None for no limit; every_n_epochs=0 switches periodic solves off."
            )
        if self.readout is not None and not isinstance(self.readout, str):
            raise MisconfigurationException(
                f"Invalid value readout={self.readout!r}. Expected a dotted name such as 'net.4', or None."
            )
        for name in ("warm_start", "final_solve", "dry_run"):
            if not isinstance(getattr(self, name), bool):
                raise MisconfigurationException(
                    f"Invalid value {name}={getattr(self, name)!r}. Expected True or False."
                )

    def changed(self) -> str:
        """The arguments that differ from their defaults, as in ``beta=0.01, seed=1``."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = {field.name: field.default for field in fields(self)}
        return ", ".join(f"{name}={value!r}" for name, value in given.items() if value != defaults[name])

    @property
    def given_beta(self) -> float | None:
        """``beta``; None: it is to be chosen."""
        return None if self.beta == "auto" else float(self.beta)

    @property
    def chooses_ridge(self) -> bool:
        """Whether the penalty is to be chosen, and may be ridge."""
        return self.beta == "auto" and self.l1_ratio in ("auto", 0)

    @property
    def witness_options(self) -> WitnessOptions:
        """What a search for hidden weights needs to know of these."""
        return WitnessOptions(self.witnesses, self.seed, self.backend, self.loss)


def check_settings(every: Sequence[Settings]) -> None:
    """Refuse callbacks of one Trainer that stand in each other's way.

    Args:
        every: The settings of all, in the order in which they act.

    Raises:
        MisconfigurationException: If one of several has no readout of its own, or a later one changes hidden weights.
    """
    if len(every) > 1 and any(settings.readout is None for settings in every):
        raise MisconfigurationException(
            "Found several ConvexReconstruction callbacks of which one has readout=None; expected each to name its "
            "own readout, such as readout='net.4'."
        )
    if any(settings.witnesses not in ("auto", "keep") for settings in every[1:]):
        raise MisconfigurationException(
            f"Found ConvexReconstruction callbacks with witnesses={[settings.witnesses for settings in every]}. Only "
            "the first may change hidden weights that others solve over; expected 'auto' or 'keep' for the rest."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
