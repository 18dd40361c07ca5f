"""Does the package still give the numbers it gave? Fixed seeds, public names, two commits side by side.

`python benchmarks/same.py record FILE` runs the cases with the package on the path (about three minutes on one thread)
and writes what came of them; `python benchmarks/same.py compare BEFORE AFTER` prints a line per case and fails where
objectives differ by more than 1e-9 of their size, or decisions or accuracies at all. For another commit:
`PYTHONPATH=FOLDER python benchmarks/same.py record FILE`. Bits are those of the whole ``state_dict`` afterwards, or of
the solution. Both records must come from one machine and one thread count.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from common import Row, accuracy, digits, show, trainer
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import (
    AdditionDataModule,
    AdditionSNN,
    ConvexReconstruction,
    LitSNN,
    ParallelSNN,
    XORDataModule,
    calibrate,
    prune,
    reconstruct,
    spike_dictionary,
    widen_margins,
)
from lightning_cvxsnn.convex import certificate, path, solve
from lightning_cvxsnn.demo import quiet

TOLERANCE = 1e-9
SEED = 0
#: Names that fields of `SolveReport` had before.
RENAMED = {"objective_before": "held_out_loss_before", "objective_after": "held_out_loss_after"}
IGNORED = ("work", "overhead", "seconds_patterns", "seconds_solve")
ACCURACIES = ("accuracy_before", "accuracy_after")
#: What is left of a certified optimum after rounding; it has no digits to compare.
NOISE = ("gap", "gap_written", "violation")


class Regression(LitSNN):
    """`LitSNN` on one-hot targets with the squared loss."""

    def convex_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        x, y = batch
        return x, F.one_hot(y, 10).float()

    def _loss_of(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(logits, F.one_hot(y, 10).float())


class Own(pl.LightningModule):
    """A network of a user's: layers in single-step or multi-step mode over images of 8x8, shown for four steps."""

    def __init__(self, *layers: nn.Module, step_mode: str = "m") -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)
        self.step_mode = step_mode
        functional.set_step_mode(self.net, step_mode)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self.net)
        steps = x[None, :, None].expand(4, -1, -1, -1, -1)
        if self.step_mode == "m":
            return self.net(steps).mean(0)
        return torch.stack([self.net(step) for step in steps]).mean(0)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def spiking() -> nn.Module:
    return neuron.LIFNode(surrogate_function=surrogate.ATan())


def convolutional(step_mode: str = "m") -> Own:
    return Own(
        layer.Conv2d(1, 8, 3, padding=1), layer.BatchNorm2d(8), spiking(), layer.MaxPool2d(2), layer.Flatten(),
        layer.Linear(128, 10), step_mode=step_mode,
    )  # fmt: skip


def spiking_output() -> Own:
    return Own(layer.Flatten(), layer.Linear(64, 48), spiking(), layer.Linear(48, 10), spiking())


# -- cases ------------------------------------------------------------------------------------------------------------


def fitted(make: Callable[[], pl.LightningModule], epochs: int = 3, **arguments: Any) -> Row:
    """A network trained on the digits with the callback."""
    train, validation, test = digits(SEED)
    pl.seed_everything(SEED, verbose=False)
    net = make()
    callback = ConvexReconstruction(**arguments)
    trainer(epochs, [callback]).fit(net, DataLoader(train, 64, shuffle=True))
    return outcome(net, callback.reports, accuracy(net, validation), accuracy(net, test))


def solved(make: Callable[[], pl.LightningModule], **arguments: Any) -> Row:
    """A network whose readout is solved for once on the digits, which is then pruned."""
    train, validation, test = digits(SEED)
    pl.seed_everything(SEED, verbose=False)
    net = make()
    report = reconstruct(net, DataLoader(train, 64), **arguments)
    small = prune(net, train.tensors[0][:8])
    return outcome(small, [report], accuracy(net, validation), accuracy(net, test))


def widened() -> Row:
    """A calibrated layer of 12 units, the margins of which are widened on 200 rows."""
    train, *_ = digits(SEED)
    pl.seed_everything(SEED, verbose=False)
    net = LitSNN(hidden=[12])
    rows = DataLoader(train, 64)
    calibrate(net, rows)
    margins = widen_margins(net, rows, max_samples=200)
    return {"bits": bits(net.state_dict()), "steps": [asdict(margins)]}


def parallel(witnesses: str, epochs: int = 2, **arguments: Any) -> Row:
    """XOR of six steps by branches of neurons as in the paper, trained with hinge."""
    data = XORDataModule(6, (400, 200, 200), 64, SEED)
    data.setup("fit")
    pl.seed_everything(SEED, verbose=False)
    net = ParallelSNN(width=32, last_width=48, depth=3, branches=4, loss="hinge", **arguments)
    callback = ConvexReconstruction(loss="hinge", witnesses=witnesses, every_n_epochs=1)
    trainer(epochs, [callback]).fit(net, data.train_dataloader())
    return outcome(net, callback.reports, accuracy(net, data.val), accuracy(net, data.test))


def addition() -> Row:
    """Sums in base 3, a target per step."""
    data = AdditionDataModule(3, sizes=(200, 50, 50), seed=SEED)
    data.setup("fit")
    pl.seed_everything(SEED, verbose=False)
    net = AdditionSNN(3, last_width=48, branches=4, tau=(1.05, 100.0), reset="mixed")
    report = reconstruct(net, data.train_dataloader(), witnesses="gaussian_standard", beta=1e-3, seed=SEED)
    return outcome(net, [report], accuracy(net, data.val))


def programme(loss: str, weighted: bool, **arguments: Any) -> Row:
    """`solve`, `path` and `certificate` over the spikes of 96 calibrated units on 400 digits."""
    train, *_ = digits(SEED)
    train = TensorDataset(*(part[:400] for part in train.tensors))
    pl.seed_everything(SEED, verbose=False)
    net = LitSNN(hidden=[96])
    rows = DataLoader(train, 64)
    calibrate(net, rows)
    dictionary = spike_dictionary(net, rows)
    labels = train.tensors[1]
    targets = F.one_hot(labels, 10).double() if loss == "squared" else labels
    weight = torch.arange(400) % 3 * 0.5 if weighted else None
    shared = {"loss": loss, "fit_intercept": True, "sample_weight": weight} | arguments
    if shared.get("num_outputs") == 1:
        targets = targets % 2
    outputs = {"num_outputs": shared.pop("num_outputs", None)}
    solution = solve(dictionary, targets, rho=0.003, **shared, **outputs)
    proof = certificate(
        dictionary, targets, solution.coef.float(), solution.intercept.float() if shared["fit_intercept"] else None,
        rho=0.003, dual_point=solution.dual_point, **shared,
    )  # fmt: skip
    found = path(dictionary, targets, held_out=torch.arange(400) % 5 == 0, num_values=12, **shared, **outputs)
    point = {"coef": solution.coef, "intercept": solution.intercept, "dual_point": solution.dual_point}
    point |= {f"coef {k}": each.coef for k, each in enumerate(found.solutions)}
    certified = {"active": int(solution.coef.any(1).sum()), "converged": solution.converged}
    certified |= {"algorithm": solution.algorithm, "primal": solution.primal, "dual": solution.dual}
    steps: list[Row] = [certified, {"primal": proof.primal, "dual": proof.dual}]
    for rho, held_out_loss, each in zip(found.rhos, found.held_out_losses, found.solutions, strict=True):
        steps.append({"rho": rho, "held_out_loss_after": held_out_loss, "primal": each.primal})
        steps[-1] |= {"best": found.best, "active": int(each.coef.any(1).sum())}
    return {"bits": bits(point), "steps": steps}


def cases() -> dict[str, Callable[[], Row]]:
    """Names of the cases and how to run them."""
    two, nine = partial(LitSNN, hidden=[48, 48]), partial(LitSNN, hidden=[48] * 9)
    squared = partial(Regression, hidden=[48, 48])
    one = partial(LitSNN, hidden=[64], reduction="last", v_reset=None)
    kinds = ("calibrated", "gaussian_standard", "gaussian_normalized", "gaussian_orthogonal", "pairs", "pool")
    found: dict[str, Callable[[], Row]] = {
        "digits, two layers": partial(fitted, two),
        "digits, nine layers": partial(fitted, nine, max_overhead=None),
        "digits, one layer, last, soft reset": partial(fitted, one, max_overhead=None),
        "digits, one layer, keep": partial(fitted, one, epochs=1, witnesses="keep"),
    }
    for kind in kinds:
        found[f"digits, two layers, {kind}"] = partial(fitted, two, epochs=1, witnesses=kind)
    found |= {
        "digits, two layers, priced": partial(fitted, two, witnesses="priced", max_overhead=None),
        "digits, two layers, priced, replace": partial(fitted, two, witnesses="priced", apply="replace"),
        "digits, two layers, replace": partial(fitted, two, apply="replace", max_overhead=None),
        "digits, two layers, shadow": partial(fitted, two, apply="shadow", max_overhead=None),
        "digits, two layers, hinge": partial(fitted, two, epochs=2, loss="hinge", max_overhead=None),
        "digits, two layers, squared": partial(fitted, squared, epochs=2, loss="squared", max_overhead=None),
        "digits, two layers, max_samples, dry run": partial(fitted, two, 1, max_samples=300, dry_run=True),
        "digits, convolution and batch norm": partial(fitted, convolutional, epochs=2, max_overhead=None),
        "digits, convolution, single step": partial(fitted, partial(convolutional, "s"), epochs=1),
        "digits, convolution, priced": partial(fitted, convolutional, epochs=1, witnesses="priced"),
        "digits, spiking output": partial(fitted, spiking_output, epochs=2),
        "digits, reconstruct and prune": partial(solved, one, beta=0.1, witnesses="calibrated"),
        "digits, margins": widened,
        "XOR, default": partial(parallel, "auto"),
        "XOR, pool": partial(parallel, "pool", 1, tau=(1.05, 100.0), reset="mixed"),
        "XOR, priced": partial(parallel, "priced", 2, tau=(1.05, 100.0), v_threshold=(0.5, 1.0)),
        "XOR, membrane": partial(parallel, "gaussian_normalized", 1, reduction="membrane"),
        "addition": addition,
    }
    for loss in ("cross_entropy", "hinge", "squared"):
        for weighted in (False, True):
            found[f"solve, {loss}{', weighted' * weighted}"] = partial(programme, loss, weighted)
        found[f"solve, {loss}, no intercept"] = partial(programme, loss, False, fit_intercept=False)
    for loss in ("cross_entropy", "hinge"):
        found[f"solve, {loss}, one output"] = partial(programme, loss, False, num_outputs=1)
    return found


# -- records ----------------------------------------------------------------------------------------------------------


def outcome(net: nn.Module, reports: list[Any], *accuracies: float) -> Row:
    return {
        "bits": bits(net.state_dict()),
        "steps": [{RENAMED.get(k, k): v for k, v in asdict(report).items() if k not in IGNORED} for report in reports],
        "accuracies": list(accuracies),
    }


def bits(tensors: dict[str, Any]) -> str:
    """A hash of names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def exact(value: Any) -> Any:
    """Floats in hexadecimal, which loses no bit."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {key: exact(each) for key, each in value.items()}
    return [exact(each) for each in value] if isinstance(value, (list, tuple)) else value


def record(file: Path, only: str) -> None:
    import lightning_cvxsnn

    print(f"{Path(lightning_cvxsnn.__file__).parent}, {torch.get_num_threads()} thread(s)")
    recorded = {}
    for name, run in cases().items():
        if only in name:
            started = time.process_time()
            with quiet():
                recorded[name] = exact(run())
            print(f"{name}: {time.process_time() - started:.1f} s, {len(recorded[name]['steps'])} steps", flush=True)
    file.write_text(json.dumps(recorded, indent=1) + "\n")


# -- comparison -------------------------------------------------------------------------------------------------------


def difference(before: Any, after: Any) -> float:
    """Relative difference of two floats in hexadecimal; infinite if one of them is none."""
    if before == after:
        return 0.0
    if not isinstance(before, str) or not isinstance(after, str):
        return float("inf")
    one, two = float.fromhex(before), float.fromhex(after)
    return abs(one - two) / max(abs(one), abs(two))


def number(step: Row, key: str) -> bool:
    """Whether a field is an objective, a loss, a penalty or a factor, which rounding may move."""
    return key not in (*NOISE, *ACCURACIES) and isinstance(step[key], str) and "0x" in step[key]


def decided(case: Row) -> tuple[list[Row], list[Any]]:
    """Decisions of each solve, and all accuracies."""
    steps = case["steps"]
    decisions = [{k: step[k] for k in step if k not in (*NOISE, *ACCURACIES) and not number(step, k)} for step in steps]
    return decisions, [case.get("accuracies"), *([step.get(k) for k in ACCURACIES] for step in steps)]


def line(name: str, before: Row, after: Row) -> Row:
    """What the table says of one case."""
    pairs = list(zip(before["steps"], after["steps"], strict=False))
    decisions, accuracies = zip(*(decided(each) for each in (before, after)), strict=True)
    return {
        "case": name,
        "bits": "equal" if before["bits"] == after["bits"] else "differ",
        "fields": "equal" if before["steps"] == after["steps"] else "differ",
        "objective": max(difference(one.get(k), two.get(k)) for one, two in pairs for k in one if number(one, k)),
        "decisions": "equal" if decisions[0] == decisions[1] else "DIFFER",
        "accuracies": "equal" if accuracies[0] == accuracies[1] else "DIFFER",
    }


def compare(before: Path, after: Path) -> int:
    """Print the table; 1 if a case is missing, or not the same."""
    records = [json.loads(file.read_text()) for file in (before, after)]
    shared = [name for name in records[0] if name in records[1]]
    rows = [line(name, records[0][name], records[1][name]) for name in shared]
    show(f"{before.name} and {after.name}; objective: largest relative difference", rows)
    missing = sorted(set(records[0]) ^ set(records[1]))
    for name in missing:
        print(f"only in one: {name}")
    for name in shared:
        if records[0][name]["steps"] != records[1][name]["steps"]:
            explain(name, records[0][name]["steps"], records[1][name]["steps"])
    wrong = [r for r in rows if r["objective"] > TOLERANCE or "DIFFER" in (r["decisions"], r["accuracies"])]
    print(f"{len(rows)} cases, {len(wrong)} not the same, {sum(row['bits'] == 'equal' for row in rows)} equal in bits")
    return int(bool(wrong or missing))


def explain(name: str, before: list[Row], after: list[Row]) -> None:
    """The first solve of a case at which the fields differ."""
    if len(before) != len(after):
        print(f"{name}: {len(before)} and {len(after)} solves")
    for number, (one, two) in enumerate(zip(before, after, strict=False)):
        changed = {k: (one.get(k), two.get(k)) for k in one | two if one.get(k) != two.get(k)}
        if changed:
            shown = ", ".join(f"{k} {readable(a)} / {readable(b)}" for k, (a, b) in changed.items())
            print(f"{name}, solve {number}: {shown}")
            return


def readable(value: Any) -> Any:
    return repr(float.fromhex(value)) if isinstance(value, str) and "0x" in value else value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--only", default="", help="cases whose name contains this")
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "compare":
        return compare(options.before, options.after)
    torch.set_num_threads(1)
    record(options.file, options.only)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
