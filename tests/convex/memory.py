"""Peak memory of a solve on a packed dictionary: `python tests/convex/memory.py ROWS COLUMNS OUTPUTS [options]`.

The dictionary is what random LIF units (4 steps, mean rate about 0.1) answer to rows of a mixture of classes, so its
columns are correlated and the labels depend on them. Prints one line of JSON; `grown_mb` is the peak
resident memory over what the interpreter, its imports and the dictionary itself hold before the solve. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time

import torch

from lightning_cvxsnn.convex import solve
from lightning_cvxsnn.patterns import SpikeDictionary

STEPS = 4


def spikes(rows: int, columns: int, outputs: int) -> tuple[SpikeDictionary, torch.Tensor]:
    """Counts of 4 steps and the labels they carry."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(outputs, 64, generator=generator)
    weights = torch.randn(64, columns, generator=generator) / 8
    labels = torch.randint(outputs, (rows,), generator=generator)
    counts = torch.empty(rows, columns, dtype=torch.uint8)
    for part in torch.arange(rows).split(1000):
        x = 0.4 * centres[labels[part]] + torch.randn(len(part), 64, generator=generator)
        drive, v = 0.45 * x @ weights - 0.05, torch.zeros(len(part), columns)
        total = torch.zeros_like(v)
        for _ in range(STEPS):
            v = 0.9 * v + drive
            fired = v >= 1
            v -= fired.float()
            total += fired
        counts[part] = total.to(torch.uint8)
    return SpikeDictionary(counts, 1 / STEPS), labels


def memory_mb(field: str) -> float:
    """Resident memory now (`VmRSS`) or at its peak (`VmHWM`)."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024


def forget_peak() -> None:
    """Count the peak from now on; where that is not allowed, `grown_mb` comes out too large."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=int)
    parser.add_argument("columns", type=int)
    parser.add_argument("outputs", type=int)
    parser.add_argument("--loss", default="cross_entropy")
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--max-iterations", type=int, default=None)
    parser.add_argument("--bits", action="store_true", help="1 where a unit fired at all, stored as bits")
    arguments = parser.parse_args()
    dictionary, targets = spikes(arguments.rows, arguments.columns, arguments.outputs)
    if arguments.bits:
        dictionary = SpikeDictionary(dictionary.counts.clamp_(max=1)).packed()
    if arguments.loss == "squared":
        targets = torch.nn.functional.one_hot(targets).double()
    highest = memory_mb("VmHWM")
    forget_peak()
    before = memory_mb("VmRSS")
    started = time.process_time()
    solution = solve(
        dictionary,
        targets,
        loss=arguments.loss,
        rho=arguments.beta / arguments.columns**0.5,
        fit_intercept=True,
        num_outputs=arguments.outputs,
        max_iterations=arguments.max_iterations,
    )
    seconds = time.process_time() - started
    peak = memory_mb("VmHWM")
    result = {
        "rate": round(dictionary.rate, 4),
        "dictionary_mb": round(dictionary.counts.nbytes / 2**20),
        "before_mb": round(before),
        "grown_mb": round(peak - before),
        "peak_mb": round(max(peak, highest)),
        "seconds": round(solution.seconds, 1),
        "cpu_seconds": round(seconds, 1),
        "iterations": solution.iterations,
        "primal": solution.primal,
        "gap": solution.gap,
        "converged": solution.converged,
        "nonzero": int((solution.coef != 0).sum()),
        "columns_used": int(solution.coef.any(1).sum()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
