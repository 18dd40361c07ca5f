"""The ``cvxsnn`` command: LightningCLI for ``fit``, ``validate``, ``test`` and ``predict``, and commands of our own."""

import importlib
import inspect
import os
import pickle
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from jsonargparse import ArgumentParser, auto_cli
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import lightning_cvxsnn  # LightningCLI finds classes that are imported by their bare names
from lightning_cvxsnn.training.cli import CvxsnnCLI, SaveConfig, meant, one_line, take_hooks

_COMMANDS = ("ablate", "compare", "demo", "doctor", "fit", "predict", "report", "test", "validate")
_USAGE = f"""\
usage: cvxsnn [--version] {{{",".join(_COMMANDS)}}} ...

  ablate     train the methods, tasks, settings and seeds of a sweep file, each in a process; --config SWEEP
  compare    set the logs of two runs side by side: compare FOLDER FOLDER [--output FILE.png]
  demo       train on scikit-learn's digits with and without convex reconstruction, print the comparison
  doctor     examine the network that fit would train, layer by layer; takes the options of fit, writes nothing
  fit        train; LightningCLI: --config FILE, --model CLASS, --data CLASS, --trainer.callbacks+=CLASS, ...
  validate   evaluate on the validation set
  test       evaluate on the test set
  predict    answer the test set; answers go to predictions_<rank>.pt in the run's folder
  report     write tables, figures and report.html of an ablation: report FOLDER [FOLDER ...] [--output FOLDER]

Each command answers --help. `cvxsnn fit --print_config` writes a configuration to start from. A wrong value ends the
command with one line and status 2; set CVXSNN_TRACEBACK=1 to see where it was found.
"""


_OURS = (ArgumentError, MisconfigurationException)


class _DoctorCLI(CvxsnnCLI):
    """Whatever configures ``fit`` configures this; the network is examined in its place."""

    def fit(self, model: pl.LightningModule, ckpt_path: str | None = None, **_: Any) -> None:
        """Print the diagnosis of ``model`` as ``fit`` would set it up, of the checkpoint's weights if one is given."""
        trainer: Any = self.trainer
        data = self.datamodule
        model.trainer = data.trainer = trainer
        trainer.training = True  # hooks may ask
        data.prepare_data()
        data.setup("fit")
        model.setup("fit")
        model.configure_model()
        if ckpt_path is not None:
            try:
                model.load_state_dict(torch.load(ckpt_path, map_location="cpu", weights_only=True)["state_dict"])
            except (OSError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
                told = "" if isinstance(error, pickle.UnpicklingError) else f" ({error})"  # it advises unsafe loading
                raise MisconfigurationException(
                    f"Found ckpt_path={ckpt_path!r}, which does not load{told}. Expected the file of a checkpoint of "
                    "this network."
                ) from error
        take_hooks(model, data)
        ours = [c.settings for c in trainer.callbacks if isinstance(c, lightning_cvxsnn.ConvexReconstruction)]
        arguments = {name: value for name, value in asdict(ours[0]).items() if name != "dry_run"} if ours else {}
        print(lightning_cvxsnn.diagnose(model, data.train_dataloader(), **arguments))


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
    except KeyboardInterrupt:
        sys.stderr.write("cvxsnn: stopped\n")
        sys.exit(130)
    except Exception as error:  # what is neither an argument's nor a configuration's fault is raised again
        _fail(error)


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
    elif arguments[0] == "--version":
        print(f"cvxsnn {lightning_cvxsnn.__version__}")
    elif not arguments[0].startswith("-") and arguments[0] not in _COMMANDS:
        close = meant(arguments[0], _COMMANDS)
        raise MisconfigurationException(
            f"Found no command {arguments[0]!r}. Expected one of {', '.join(_COMMANDS)}.{close}"
        )
    elif arguments[0] == "demo":
        from lightning_cvxsnn.demo import show_demo

        auto_cli(show_demo, args=arguments[1:], as_positional=False, prog="cvxsnn demo", exit_on_error=False)
    elif arguments[0] == "ablate":
        _ablate(arguments[1:])
    elif arguments[0] in ("compare", "report"):
        _read_runs(arguments[0], arguments[1:])
    else:
        doctor = arguments[0] == "doctor"
        (_DoctorCLI if doctor else CvxsnnCLI)(
            pl.LightningModule,
            pl.LightningDataModule,
            save_config_callback=None if doctor else SaveConfig,
            seed_everything_default=0,  # what Lightning sets where none is given, with a warning
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=["fit", *arguments[1:]] if doctor else arguments,
        )


@contextmanager
def _extra_packages() -> Iterator[None]:
    """Say which package of the extra ``ablate`` is missing where an import fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MisconfigurationException(
            f"Found no package {error.name}. Expected those of the extra `ablate`: in the folder of the checkout, "
            "pip install '.[ablate]'."
        ) from error


@contextmanager
def _files() -> Iterator[None]:
    """Say which file or folder is in the way where reading or writing fails."""
    try:
        yield
    except OSError as error:
        if error.filename is None:  # of a connection, or of all files
            raise MisconfigurationException(f"Found no way to go on: {error}.") from error
        raise MisconfigurationException(
            f"Found no way to write or read {str(error.filename)!r} ({error.strerror}). Expected a place that can be "
            "written: pass another --output."
        ) from error


def _ablate(arguments: list[str]) -> None:
    with _extra_packages():
        from lightning_cvxsnn.ablation.runner import ablate

    told = inspect.cleandoc(ablate.__doc__ or "").partition("\n\nArgs:")[0]
    parser = ArgumentParser(prog="cvxsnn ablate", description=told, exit_on_error=False)
    parser.add_argument("-c", "--config", required=True, metavar="SWEEP", help="The sweep, a YAML file.")
    parser.add_function_arguments(ablate, as_group=False, skip={"config", "dry_run"})
    parser.add_argument("--dry-run", action="store_true", help="List the cells and estimate the time, train nothing.")
    given = parser.parse_args(arguments)
    with _extra_packages():  # those of the report are wanted when all is trained: too late to say so
        importlib.import_module("lightning_cvxsnn.ablation.report")
    with _files():
        finished = ablate(**given.as_dict())
    if not finished:
        sys.exit(1)


def _read_runs(command: str, arguments: list[str]) -> None:
    """``compare`` and ``report``."""
    parser = ArgumentParser(prog=f"cvxsnn {command}", exit_on_error=False)
    if command == "report":
        parser.add_argument("folders", nargs="+", help="run folders of cvxsnn ablate: one, or the shards of one sweep")
        parser.add_argument("--output", type=str | None, help="folder to write to; default: the first run folder")
    else:
        parser.add_argument("a", help="a run's folder: a cell of cvxsnn ablate, or logs of Lightning")
        parser.add_argument("b", help="the other")
        parser.add_argument("--output", type=str | None, help="file for the curves: .png, .svg or .pdf")
    given = parser.parse_args(arguments)
    with _extra_packages():
        from lightning_cvxsnn.ablation import compare, report
    with _files():
        if command == "report":
            print(f"Wrote {report.write_report(*given.folders, output=given.output)}")
            return
        frame = compare.compare_runs(given.a, given.b)
        print(f"A = {given.a}, B = {given.b}")
        compare.print_comparison(frame)
        if given.output is not None:
            compare.draw_comparison(given.a, given.b, given.output)
            print(f"Wrote {given.output}")


def _fail(error: Exception) -> NoReturn:
    """End with status 2 and one line where an argument or a configuration is wrong; raise whatever else happened."""
    package = _raised_in(error)
    cause: BaseException = error
    while package == "jsonargparse" and cause.__cause__ is not None and not isinstance(cause, _OURS):
        cause = cause.__cause__  # of a class that could not be made of its arguments
    checked = package in ("jsonargparse", "lightning", "lightning_cvxsnn") and isinstance(cause, (ValueError, OSError))
    if os.environ.get("CVXSNN_TRACEBACK") or not (checked or isinstance(cause, _OURS)):
        raise error
    message = one_line(str(error)) if isinstance(error, ArgumentError) else " ".join(str(cause).split())
    sys.stderr.write(f"cvxsnn: error: {message}\n")
    sys.exit(2)


def _raised_in(error: Exception) -> str:
    """The package whose code raised ``error``."""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    return "" if where is None else str(where.tb_frame.f_globals["__name__"]).partition(".")[0]
