"""The ``cvxsnn`` command: LightningCLI for ``fit``, ``validate`` and ``test``, and ``demo``."""

import sys

import lightning.pytorch as pl
from jsonargparse import auto_cli
from lightning.pytorch.cli import ArgsType, LightningCLI
from typing_extensions import override

import lightning_cvxsnn  # noqa: F401  LightningCLI finds classes that are imported by their bare names

_USAGE = """\
usage: cvxsnn {demo,fit,validate,test} ...

  demo       train on scikit-learn's digits with and without convex reconstruction, print the comparison
  fit        train; LightningCLI: --config FILE, --model CLASS, --data CLASS, --trainer.callbacks+=CLASS, ...
  validate   evaluate on the validation set
  test       evaluate on the test set

Each command answers --help. `cvxsnn fit --print_config` writes a configuration to start from.
"""


class CvxsnnCLI(LightningCLI):
    """LightningCLI with ``fit``, ``validate`` and ``test`` only."""

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        """Trainer methods that become commands, with the arguments that the CLI fills itself."""
        every = LightningCLI.subcommands()
        return {name: every[name] for name in ("fit", "validate", "test")}


def main(args: ArgsType = None) -> None:
    """Run the command line.

    Args:
        args: Arguments; None: those of the process.
    """
    arguments = sys.argv[1:] if args is None else args
    if isinstance(arguments, list) and (not arguments or arguments[0] in ("-h", "--help")):
        print(_USAGE, end="")
    elif isinstance(arguments, list) and arguments[0] == "demo":
        from lightning_cvxsnn.demo import show_demo

        auto_cli(show_demo, args=arguments[1:], as_positional=False)
    else:
        CvxsnnCLI(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=arguments,
        )
