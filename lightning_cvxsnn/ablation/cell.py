"""One cell in a process of its own: ``python -m lightning_cvxsnn.ablation.cell FOLDER [RUNNERS_LOCK]``."""

import multiprocessing
import os
import platform
import subprocess
import sys
import threading
import time
import traceback
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import threadpoolctl
import torch
from filelock import FileLock
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_cvxsnn.ablation.fits import fit_of
from lightning_cvxsnn.ablation.parts import see_part
from lightning_cvxsnn.ablation.reading import read_yaml
from lightning_cvxsnn.ablation.recorder import Recorder
from lightning_cvxsnn.ablation.state import State, is_finished, is_held, read_json, read_state, write_json, write_state
from lightning_cvxsnn.training.cli import one_line

_ORPHAN = 3  # exit status of what has lost its runner


def config_name(stage: int) -> str:
    """Name of the configuration of a cell's fit, counted from 0."""
    return "config.yaml" if stage == 0 else f"config-{stage + 1}.yaml"


def run_cell(folder: Path) -> bool:
    """Train a cell, unless it is finished; one process at a time does, others wait.

    Whatever goes wrong in training is written into its state and log, and not raised.

    Args:
        folder: The cell's, with ``cell.json`` and its configurations.

    Returns:
        Whether it is finished.
    """
    with FileLock(folder / "lock"):
        if is_finished(folder):
            return True
        for name in ("history.csv", "reports.json", "result.json"):
            (folder / name).unlink(missing_ok=True)
        with open(folder / "log.txt", "w", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        before = read_state(folder)
        state: State = {
            "state": "running",
            "error": None,
            "attempts": (before["attempts"] if before else 0) + 1,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "machine": _machine(),
        }
        write_state(folder, state)
        started = time.monotonic() - time.process_time()  # imports of this process included
        try:
            write_json(folder / "result.json", _train(folder, read_json(folder / "cell.json")))
            state["state"] = "finished"
        except Exception as error:
            traceback.print_exc()
            state["state"], state["error"] = "failed", _told(error)
        state["seconds"] = round(time.monotonic() - started, 3)
        sys.stdout.flush()
        sys.stderr.flush()
        write_state(folder, state)
        return state["state"] == "finished"


def _told(error: BaseException) -> str:
    """In one line what went wrong: Lightning tidies up after an error, which may fail in turn."""
    while error.__cause__ is None and error.__context__ is not None and _tidying(error):
        error = error.__context__
    told = str(error)
    if "Does not validate against any of" in told:  # jsonargparse's, of all types that a value could have had
        told = one_line(told)
    return " ".join(f"{type(error).__name__}: {told}".split())


def _tidying(error: BaseException) -> bool:
    """Whether an error was raised while Lightning ended a fit."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_name in ("_teardown", "teardown", "on_exception", "_interrupt") for frame, _ in frames)


def _train(folder: Path, cell: dict[str, Any]) -> dict[str, Any]:
    """All fits of a cell, then the metrics of the weights that the last one left."""
    torch.set_num_threads(cell["threads"])
    threadpoolctl.threadpool_limits(cell["threads"])
    recorder = Recorder(folder, len(cell["parts"]))
    weights: dict[str, Any] | None = None
    for stage, part in enumerate(cell["parts"]):
        fit = fit_of(read_yaml(folder / config_name(stage)), str(folder), recorder)
        if weights is not None:
            fit.model.load_state_dict(weights)
        if part is not None:
            see_part(fit.datamodule, part[0], part[1], cell["seed"])
        fit.trainer.fit(fit.model, datamodule=fit.datamodule, **fit.fit_arguments)
        weights = fit.model.state_dict()
    return {
        "metrics": _metrics(fit.trainer, fit.model, fit.datamodule, test=cell["stage"] == "run"),
        "epochs": recorder.epochs,
        "cpu_seconds": round(recorder.cpu_seconds, 4),
        "trained_parameters": recorder.trained_parameters,
    }


def _metrics(
    trainer: "pl.Trainer", model: "pl.LightningModule", data: "pl.LightningDataModule | None", test: bool
) -> dict[str, float]:
    """Of a validation and of a test, where module and data have them; of one name, the test's has ``test/`` before."""
    metrics: dict[str, float] = {}
    for name, wanted in (("validate", True), ("test", test)):
        step, loader = ("validation_step", "val_dataloader") if name == "validate" else ("test_step", "test_dataloader")
        source: Any = model if data is None else data
        parent = pl.LightningModule if data is None else pl.LightningDataModule
        if wanted and is_overridden(step, model) and is_overridden(loader, source, parent):
            for found in getattr(trainer, name)(model, datamodule=data, verbose=False):
                metrics |= {f"{name}/{key}" if key in metrics else key: float(value) for key, value in found.items()}
    return metrics


def _machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {"python": platform.python_version(), "torch": torch.__version__, "lightning": pl.__version__}
    return {"system": platform.platform(), "cpus": os.cpu_count(), "gpu": gpu, **versions}


def _end_with(lock: Path) -> None:
    """End this process when the runner that started it is no more: it holds ``lock`` as long as it lives."""
    while is_held(lock):
        time.sleep(0.5)
    os._exit(_ORPHAN)


def command(folder: Path, lock: Path) -> list[str]:
    """What starts a cell's process."""
    return [sys.executable, "-m", "lightning_cvxsnn.ablation.cell", str(folder.resolve()), str(lock.resolve())]


def run_forked(arguments: list[str], cwd: str) -> "subprocess.CompletedProcess[str]":
    """``subprocess.run`` of a `command` without the seconds that its imports take: in a fork of this process.

    Only for a process that has done nothing but import: threads and CUDA do not survive a fork.
    """
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.chdir(cwd)
            sys.path.insert(0, cwd)  # as ``python -m`` does
            multiprocessing.set_start_method(None, force=True)  # loky has set its own, for loaders' workers too
            with open(os.devnull) as nothing:
                os.dup2(nothing.fileno(), 0)
            status = main(arguments[3:])
        finally:  # whatever is raised ends here: the caller's frames belong to the parent
            os._exit(status)
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        time.sleep(0.1)
        if not is_held(Path(arguments[4])):  # the cell ends by itself; this worker would wait for work for ever
            os._exit(_ORPHAN)
    return subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(ended[1]), "", "")


def main(arguments: list[str]) -> int:
    """Run the cell that the arguments name, and after it the runner's lock; the exit status."""
    if len(arguments) > 1:
        threading.Thread(target=_end_with, args=(Path(arguments[1]),), daemon=True).start()
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)
    return 0 if run_cell(Path(arguments[0])) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
