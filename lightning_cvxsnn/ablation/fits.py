"""A configuration of LightningCLI checked, and made into what a fit needs."""

import json
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from lightning_cvxsnn.ablation.sweep import Cell
from lightning_cvxsnn.training.cli import CvxsnnCLI, one_line


class _FitCLI(CvxsnnCLI):
    """The options of ``fit``; nothing runs by itself."""

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        return {"fit": CvxsnnCLI.subcommands()["fit"]}

    def fit(self, model: pl.LightningModule, datamodule: Any = None, **arguments: Any) -> None:
        """Keep what `Trainer.fit` would be called with."""
        self.fit_arguments = arguments


class _CheckCLI(_FitCLI):
    """A parser alone."""

    @override
    def parse_arguments(self, parser: Any, args: Any) -> None:
        self.config = {"subcommand": None}

    @override
    def _parse_ckpt_path(self) -> None:
        """There is no configuration yet."""

    @override
    def _set_seed(self) -> None:
        """The process that checks keeps its generators."""

    @override
    def instantiate_classes(self) -> None:
        """Nothing to make."""

    @override
    def after_instantiate_classes(self) -> None:
        """Nothing was made."""

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing to run."""


def _options() -> dict[str, Any]:
    return {
        "model_class": pl.LightningModule,
        "datamodule_class": pl.LightningDataModule,
        "save_config_callback": None,
        "seed_everything_default": 0,
        "subclass_mode_model": True,
        "subclass_mode_data": True,
    }


def fit_of(config: dict[str, Any], folder: str, recorder: pl.Callback) -> _FitCLI:
    """Model, data and Trainer of a configuration; the recorder comes after its callbacks.

    Args:
        config: Of ``cvxsnn fit``.
        folder: The Trainer's ``default_root_dir``, unless the configuration has one.
        recorder: A callback.
    """
    defaults = {"callbacks": [recorder], "default_root_dir": folder}
    return _FitCLI(**_options(), trainer_defaults=defaults, args={"subcommand": "fit", "fit": config})


def check_cells(cells: Iterable[Cell]) -> None:
    """Parse all configurations, so that a typo ends the command and not a cell; of seeds one is tried.

    Raises:
        MisconfigurationException: Naming method, task and settings.
    """
    parser = _CheckCLI(**_options()).parser
    seen = set()
    for cell in cells:
        for config in cell.configs:
            key = json.dumps({**config, "seed_everything": 0}, sort_keys=True, default=str)
            if key in seen:
                continue
            seen.add(key)
            try:
                parser.parse_object({"subcommand": "fit", "fit": config})
            except Exception as error:
                raise MisconfigurationException(
                    f"Found no valid configuration for method {cell.method}, task {cell.task}"
                    f"{''.join(f', {k}={v}' for k, v in cell.settings.items())}: {one_line(str(error))}"
                ) from error
