"""The ``cvxsnn`` command: LightningCLI for ``fit``, ``validate``, ``test`` and ``predict``; ``doctor``, ``demo``."""

import os
import pickle
import sys
import warnings
from argparse import ArgumentError
from dataclasses import asdict
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from jsonargparse import auto_cli
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import override

import lightning_cvxsnn  # LightningCLI finds classes that are imported by their bare names

_USAGE = """\
usage: cvxsnn [--version] {demo,doctor,fit,validate,test,predict} ...

  demo       train on scikit-learn's digits with and without convex reconstruction, print the comparison
  doctor     examine the network that fit would train, layer by layer; takes the options of fit, writes nothing
  fit        train; LightningCLI: --config FILE, --model CLASS, --data CLASS, --trainer.callbacks+=CLASS, ...
  validate   evaluate on the validation set
  test       evaluate on the test set
  predict    answer the test set; answers go to predictions_<rank>.pt in the run's folder

Each command answers --help. `cvxsnn fit --print_config` writes a configuration to start from. A wrong value ends the
command with one line and status 2; set CVXSNN_TRACEBACK=1 to see where it was found.
"""


_OURS = (ArgumentError, MisconfigurationException)


class _SaveConfig(SaveConfigCallback):
    """Saves the configuration into the run's folder; files of earlier runs there are kept: config-v1.yaml is next."""

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        folder, version = str(trainer.log_dir), 0
        while os.path.exists(os.path.join(folder, self.config_filename)) and not self.already_saved:
            version += 1
            self.config_filename = f"config-v{version}.yaml"
        super().setup(trainer, pl_module, stage)


class CvxsnnCLI(LightningCLI):
    """LightningCLI whose errors are exceptions, and which keeps earlier configurations and saves predictions."""

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that raises ``ArgumentError``."""
        return super().init_parser(exit_on_error=False, **kwargs)

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Lightning's, without its warning that the process may have other arguments."""
        self.config = parser.parse_args(args)

    @override
    def after_instantiate_classes(self) -> None:
        """Our data are tensors in memory: workers would only slow their loaders down."""
        if type(self.datamodule).__module__.startswith("lightning_cvxsnn."):
            warnings.filterwarnings("ignore", message=".*does not have many workers")

    def predict(self, **arguments: Any) -> None:
        """Run ``Trainer.predict`` and save what it returns."""
        predictions = self.trainer.predict(**arguments)
        if predictions:
            path = os.path.join(str(self.trainer.log_dir), f"predictions_{self.trainer.global_rank}.pt")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            torch.save(predictions, path)
            rank_zero_info(f"Saved the predictions, a list of batches: {path}")


class _DoctorCLI(CvxsnnCLI):
    """Whatever configures ``fit`` configures this; the network is examined in its place."""

    def fit(self, model: pl.LightningModule, ckpt_path: str | None = None, **_: Any) -> None:
        """Print the diagnosis of ``model``, of the checkpoint's weights if one is given."""
        if self.datamodule is None:
            raise MisconfigurationException("Found no data. Expected a LightningDataModule: pass --data CLASS.")
        if ckpt_path is not None:
            try:
                model.load_state_dict(torch.load(ckpt_path, map_location="cpu", weights_only=True)["state_dict"])
            except (OSError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
                raise MisconfigurationException(
                    f"Found ckpt_path={ckpt_path!r}, which does not load ({error}). Expected a checkpoint of this "
                    "network."
                ) from error
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        ours = [c.settings for c in callbacks if isinstance(c, lightning_cvxsnn.ConvexReconstruction)]
        arguments = {name: value for name, value in asdict(ours[0]).items() if name != "dry_run"} if ours else {}
        print(lightning_cvxsnn.diagnose(model, self.datamodule.train_dataloader(), **arguments))


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments; None: those of the process.
    """
    arguments = sys.argv[1:] if args is None else args
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # classes of the user's own, as ``python -m`` finds them
    try:
        with warnings.catch_warnings():
            # Lightning's own call of a name that torch has deprecated.
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)
            _run(arguments)
    except Exception as error:
        _fail(error)


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
    elif arguments[0] == "--version":
        print(f"cvxsnn {lightning_cvxsnn.__version__}")
    elif arguments[0] == "demo":
        from lightning_cvxsnn.demo import show_demo

        auto_cli(show_demo, args=arguments[1:], as_positional=False, prog="cvxsnn demo", exit_on_error=False)
    else:
        doctor = arguments[0] == "doctor"
        (_DoctorCLI if doctor else CvxsnnCLI)(
            pl.LightningModule,
            pl.LightningDataModule,
            save_config_callback=None if doctor else _SaveConfig,
            seed_everything_default=0,  # what Lightning sets where none is given, with a warning
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=["fit", *arguments[1:]] if doctor else arguments,
        )


def _fail(error: Exception) -> NoReturn:
    """End with status 2 and one line where an argument or a configuration is wrong; raise whatever else happened."""
    package = _raised_in(error)
    cause: BaseException = error
    while package == "jsonargparse" and cause.__cause__ is not None and not isinstance(cause, _OURS):
        cause = cause.__cause__  # of a class that could not be made of its arguments
    checked = package in ("jsonargparse", "lightning", "lightning_cvxsnn") and isinstance(cause, (ValueError, OSError))
    if os.environ.get("CVXSNN_TRACEBACK") or not (checked or isinstance(cause, _OURS)):
        raise error
    message = _shortened(str(error)) if isinstance(error, ArgumentError) else " ".join(str(cause).split())
    sys.stderr.write(f"cvxsnn: error: {message}\n")
    sys.exit(2)


def _raised_in(error: Exception) -> str:
    """The package whose code raised ``error``."""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    return "" if where is None else str(where.tb_frame.f_globals["__name__"]).partition(".")[0]


def _shortened(message: str) -> str:
    """One line of a parser's message: of several types that a value could have had, the first one's complaint."""
    lines = [line for line in message.splitlines() if line.strip()]
    depths = [len(line) - len(line.lstrip()) for line in lines]
    first = next((i for i, line in enumerate(lines) if line.lstrip().startswith("- ")), len(lines))
    after = next((i for i in range(first + 1, len(lines)) if depths[i] <= depths[first]), len(lines))
    kept = lines[:after]
    if after < len(lines) and not set("([{") & set(lines[-1]):  # the value itself, if it is a plain one
        kept.append(lines[-1])
    noise = ("Does not validate against any of", "Subtypes:", "Errors:", "Given value type:")
    told = [line.strip().removeprefix("- ") for line in kept if not line.strip().startswith(noise)]
    return "; ".join(told).replace(":; ", ": ")
