"""What two processes under DDP do; ``test_ddp.py`` runs this file and looks at what each process saw.

The first fit launches the second process as a user's script would; the other cases run in the same pair. In the last
one a process is killed in a solve: the second, or the first, given a second argument, which leaves out the other cases.
"""

import os
import signal
import sys
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import DeepNet, Net, loader, rows, state, trainer
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, SubsetRandomSampler, TensorDataset

from lightning_cvxsnn import ConvexReconstruction, ParallelSNN
from lightning_cvxsnn.network import undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import capture_programme
from lightning_cvxsnn.network.readout import Readout
from lightning_cvxsnn.network.rows import TrainingRows, rows_of
from lightning_cvxsnn.reconstruction.guard import Judges
from lightning_cvxsnn.reconstruction.reconstructor import Reconstructor
from lightning_cvxsnn.reconstruction.settings import Settings
from lightning_cvxsnn.runtime.progress import no_progress
from lightning_cvxsnn.runtime.ranks import Ranks

ROWS, BATCH = 149, 16  # ten batches, the last one short; DDP pads an epoch to 150 rows
JUDGED = [  # odd numbers of validation rows, which DDP pads too
    ("judged", 131, {}),
    ("judged together", 45, {}),
    ("judged by few", 45, {"judge": "validation"}),
    ("rejected", 131, {"scale": 1e3, "warm_start": False, "final_solve": False}),
]


class NormNet(Net):
    """A batch norm before the neurons: dead in evaluation until its statistics are estimated."""

    def __init__(self):
        super().__init__(gain=1.0)
        self.hidden = nn.Sequential(
            layer.Linear(6, 24), layer.BatchNorm1d(24, step_mode="m"), neuron.LIFNode(step_mode="m")
        )
        self.hidden[0].step_mode = "m"


class Killed(Net):
    """The process of one rank is gone in the middle of a solve."""

    passes = 0

    def forward(self, x):
        self.passes += not (self.training or self.trainer.sanity_checking)
        if self.passes == 5 and dist.get_rank() == self.victim:
            (self.folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def kill(rank, folder):
    """Fit until ``rank`` is gone; the other process tells what it saw and ends."""
    net = network(Killed)
    net.victim, net.folder = rank, folder
    _, message = fit(ConvexReconstruction(beta=0.02), net, data(), max_epochs=1)["error"]
    (folder / "survived").write_text(message)
    sys.exit(1)


class Unscored(Net):
    def validation_step(self, batch, batch_idx):
        pass


class Moments(pl.Callback):
    """The network in each validation, and at the first step of each epoch."""

    def __init__(self):
        self.validated, self.stepped = [], []

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validated.append(state(pl_module))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.stepped.append(state(pl_module))


class AfterWarmStart(pl.Callback):
    """The network as the first training step finds it."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0:
            self.state = state(pl_module)


def data(**kwargs):
    return loader(ROWS, BATCH, shuffle=True, **kwargs)


def sequences(n=ROWS, **kwargs):
    """The same rows as sequences of three steps."""
    x, y = rows(n)
    return DataLoader(TensorDataset(3 * x.unflatten(1, (3, 2)), y), BATCH, **kwargs)


def branched():
    torch.manual_seed(1)
    return ParallelSNN(width=8, last_width=16, depth=3, num_classes=3, tau=(1.05, 100.0), reset="mixed", lr=1e-2)


def network(kind=Net, **kwargs):
    torch.manual_seed(1)
    return kind(**kwargs)


def fit(callback, net, train, *others, val=None, **kwargs):
    """Train on both ranks; what this one ends with, or the error."""
    before, snapshot = state(net), AfterWarmStart()
    run = trainer(callback, snapshot, *others, devices=2, strategy="ddp", **kwargs)
    result = {}
    try:
        run.fit(net, train, val or loader(40, BATCH, seed=1))
    except Exception as error:
        result["error"] = type(error).__name__, str(error)
    result |= {"before": before, "after": state(net), "warm start": getattr(snapshot, "state", None)}
    result["reports"] = [asdict(report) for report in callback.reports]
    return result


def judged(callback, count, patch, lr=1e-3):
    """A fit with so many validation rows; also what is validated, what is trained on, and the labels that judge."""
    labels, of = [], Judges.of.__func__

    def noted(cls, network, training, validation, *, alone):
        labels.append(validation[0].targets)
        return of(cls, network, training, validation, alone=alone)

    patch.setattr(Judges, "of", classmethod(noted))
    moments = Moments()
    validation = loader(count, BATCH, seed=1)
    result = fit(callback, network(lr=lr), data(), moments, val=validation, max_epochs=4)
    return result | {"validated": moments.validated, "stepped": moments.stepped, "labels": labels}


def alone(net, train=None, val=None, **arguments):
    """The same warm start by this process, which knows of no other, as training finds it."""
    training, validation = train or loader(ROWS, BATCH), val or loader(40, BATCH, seed=1)
    reconstructor = Reconstructor(Settings(**arguments))
    report = reconstructor.run(net, rows_of(net, training), "warm start", validation=lambda: rows_of(net, validation))
    reconstructor.showing.leave(net)
    return {"after": state(net), "report": asdict(report)}


def dictionary(net, rows_of_all):
    """The programme that rank 0 gets, and that of one process."""
    found = []
    with Ranks() as ranks, undisturbed(net):
        net.eval()
        for several in (ranks, None):
            rows = TrainingRows(net, rows_of_all, transfer=lambda b: b, max_samples=None, seed=0, ranks=several)
            problem = capture_programme(
                Network(net, rows), loss="hinge", seed=0, progress=no_progress, stage="patterns"
            )
            found.append(
                problem and (problem.dictionary.counts, problem.dictionary.scale, problem.targets, problem.outputs)
            )
    return found


def bad_rows():
    """The last rows, which are the second process's, hold a NaN."""
    x, y = rows(ROWS)
    x[-1] = float("nan")
    return DataLoader(TensorDataset(x, y), batch_size=BATCH)


def failed_write(readout, coef, intercept):
    raise OSError("the memory is worn out")


def wrong_write(readout, coef, intercept, write=Readout.write):
    write(readout, coef * (1 + 1e-6), intercept)


def main(folder):
    results = {}
    logger = CSVLogger(folder, name="", version="log")
    saves = ModelCheckpoint(dirpath=folder / "saves")
    every = ConvexReconstruction(max_overhead=None, witnesses="pairs")
    results["fit"] = fit(every, network(), data(), saves, logger=logger, log_every_n_steps=1, checkpoint=True)
    rank = dist.get_rank()
    results["fit alone"] = alone(network(), witnesses="pairs")
    shadow = ConvexReconstruction(beta=0.02, apply="shadow", max_overhead=20.0)
    saves = ModelCheckpoint(dirpath=folder / "shadow")
    results["shadow"] = fit(shadow, network(), data(), saves, max_epochs=6, checkpoint=True)
    dead = {"beta": 0.02, "loss": "hinge", "witnesses": "calibrated"}
    for name, make, arguments in (
        ("batch norm", partial(network, NormNet), {"beta": 0.02}),
        ("dead", partial(network, gain=0.05), dead),
        ("priced", network, {"witnesses": "priced"}),
        ("deep", partial(network, DeepNet), {}),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results[name] = fit(ConvexReconstruction(**arguments), make(), data(), max_epochs=1)
            results[f"{name} alone"] = alone(make(), **arguments)
    branches = {"witnesses": "priced", "beta": 0.02}
    priced = ConvexReconstruction(**branches)
    results["branches"] = fit(priced, branched(), sequences(shuffle=True), val=sequences(40), max_epochs=1)
    results["branches alone"] = alone(branched(), sequences(), sequences(40), **branches)
    for name, count, arguments in JUDGED:
        with pytest.MonkeyPatch.context() as patch:
            results[name] = judged(ConvexReconstruction(max_overhead=None, **arguments), count, patch)
    with pytest.MonkeyPatch.context() as patch:  # a rate that destroys the start, and no solve before the last one
        results["shown on"] = judged(ConvexReconstruction(max_overhead=1e-6), 131, patch, lr=3.0)
    x, y = rows(40)
    other = DataLoader(TensorDataset(x, y, y), BATCH)
    results["unreadable"] = fit(ConvexReconstruction(), network(Unscored), data(), val=other, max_epochs=1)
    results["dictionary"] = dictionary(network(), data())
    results["fewer batches than processes"] = dictionary(network(), loader(12, BATCH))
    results["a list of batches"] = dictionary(network(), list(loader(ROWS, BATCH)))
    results["NaN"] = fit(ConvexReconstruction(witnesses="keep"), network(), bad_rows(), max_epochs=1)
    for name, write in (("failed write", failed_write), ("wrong write", wrong_write)):
        with pytest.MonkeyPatch.context() as patch:
            if rank == 1:
                patch.setattr(Readout, "write", write)
            results[name] = fit(ConvexReconstruction(beta=0.02), network(), data(), max_epochs=1)
    generator = torch.Generator().manual_seed(rank)  # each process would draw rows of its own
    sampler = SubsetRandomSampler(torch.randperm(ROWS, generator=generator)[:100].tolist())
    subset = DataLoader(TensorDataset(*rows(ROWS)), batch_size=BATCH, sampler=sampler)
    results["subset"] = fit(ConvexReconstruction(beta=0.02), network(), subset, max_epochs=1)
    late = ConvexReconstruction(beta=0.02, warm_start=False, every_n_epochs=0)
    saves = ModelCheckpoint(dirpath=folder / "late")
    results["late"] = fit(late, network(), data(), saves, max_epochs=1, checkpoint=True)

    class Own(BatchSampler):
        pass

    own = DataLoader(TensorDataset(*rows(ROWS)), batch_sampler=Own(SequentialSampler(range(ROWS)), BATCH, False))
    try:
        dictionary(network(), own)
    except MisconfigurationException as error:
        results["batch sampler"] = str(error)
    torch.save(results, folder / f"{rank}.pt")
    kill(1, folder)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    kill(0, Path(sys.argv[1]))
