"""LightningCLI as the commands use it: wrong values are exceptions, with one line to say what is wrong."""

import difflib
import inspect
import os
import pickle
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from lightning_cvxsnn.network.rows import TRANSFER_HOOKS


class SaveConfig(SaveConfigCallback):
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
        self.config = parser.parse_object(args) if isinstance(args, dict) else parser.parse_args(args)

    @override
    def _parse_ckpt_path(self) -> None:
        """Lightning's, which reads hyperparameters first: a file that is no checkpoint is told as such."""
        try:
            super()._parse_ckpt_path()
        except (AttributeError, EOFError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
            path = self.config[self.config.subcommand].ckpt_path
            raise MisconfigurationException(
                f"Found ckpt_path={str(path)!r}, which does not load ({error}). Expected a checkpoint of Lightning's."
            ) from error

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


def take_hooks(model: "pl.LightningModule", data: "pl.LightningDataModule") -> None:
    """Give a model those hooks of its data that change batches on their way: Lightning takes these where both have."""
    for hook in TRANSFER_HOOKS:
        if is_overridden(hook, data, pl.LightningDataModule):
            setattr(model, hook, getattr(data, hook))


def one_line(message: str) -> str:
    """A parser's message in one line: of several types that a value could have had, the first one's complaint."""
    lines = [line for line in message.splitlines() if line.strip()]
    if "Subtypes:" in message:  # classes; that each could be a file with a configuration misleads
        lines = [
            line for line in lines if not line.lstrip().startswith(("- Expected a path but", "- Does not validate"))
        ]
    depths = [len(line) - len(line.lstrip()) for line in lines]
    first = next((i for i, line in enumerate(lines) if line.lstrip().startswith("- ")), len(lines))
    after = next((i for i in range(first + 1, len(lines)) if depths[i] <= depths[first]), len(lines))
    kept = lines[:after]
    if after < len(lines) and not set("([{") & set(lines[-1]):  # the value itself, if it is a plain one
        kept.append(lines[-1])
    noise = ("Does not validate against any of", "Subtypes:", "Errors:", "Given value type:")
    told = [line.strip().removeprefix("- ") for line in kept if not line.strip().startswith(noise)]
    return _with_names("; ".join(told).replace(":; ", ": "))


def _with_names(text: str) -> str:
    """A parser's complaint about a class that is not there, or an option of one, with the name that may be meant."""
    if option := re.search(r"class_path '([^']+)': Option '([^']+)' is not accepted", text):
        options = inspect.signature(pkgutil.resolve_name(option[1])).parameters
        return text.replace(option[0], f"{option[0]}.{meant(option[2], options)}")
    if option := re.search(r"does not accept option 'trainer\.([^'.]+)'", text):
        return text.replace(option[0], f"{option[0]}.{meant(option[1], inspect.signature(pl.Trainer).parameters)}")
    found = re.search(r"Expected a dot import path string: ([^\s;]+)", text) or re.search(
        r"Problem with given class_path '([^']+)': (?:No module named '([^']+)'|.*has no attribute '([^']+)')", text
    )
    if found is None:
        return text
    path, (missing, attribute) = found[1], found.groups()[1:] or ("", "")
    module, _, name = path.rpartition(".")
    if (missing and not f"{path}.".startswith(f"{missing}.")) or (attribute and attribute != name):
        return text  # the class is there, and what it imports or does is not
    homes = [sys.modules[home] for home in (module, "lightning_cvxsnn", pl.callbacks.__name__) if home in sys.modules]
    known = [each for home in homes for each in getattr(home, "__all__", vars(home))]
    return (
        f"{text[: found.start()]}Found no class '{path}'. Expected the import path of one, such as mine.MyNet."
        f"{meant(name, known)}"
    )


def meant(word: str, known: Iterable[str]) -> str:
    """A sentence that names the known word most like a wrong one; empty where none is like it."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f" Did you mean {close[0]!r}?" if close else ""
