"""Which differences between methods are real: means over seeds, paired differences, corrected for their number.

Two methods that were trained with the same seed share split, batches and start, as far as they have them: their
*difference* varies less than either. So differences are taken seed by seed, and tested by Student's paired t test
(scipy). A bootstrap over three or five seeds would give intervals that are too short: there are only that many values
to draw from. The p values of all comparisons of a sweep are corrected together by Holm's method: where nothing differs,
the chance that anything is called real is at most 5 %.

A difference is *better* or *worse* where its corrected p value is below 0.05, *inside the noise* where it is not, and
*too few seeds* where fewer than three pairs are there to tell.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lightning_cvxsnn.ablation.results import words

LEVEL = 0.95
#: Two differences of accuracies, which are multiples of one row, are equal by chance too often to say anything.
FEWEST_PAIRS = 3
BETTER, WORSE, NOISE, FEW, ALONE = "better", "worse", "inside the noise", "too few seeds", "not compared"

#: What makes an arm: its cells differ in their seed only.
ARM = ["task", "setting", "method"]


def interval(values: Sequence[float] | pd.Series) -> tuple[float, float, float]:
    """Mean and its 95 % interval by Student's t; NaNs are left out.

    Args:
        values: One of each seed.

    Returns:
        Mean, lower and upper end; without an interval (NaN) for a single value.

    Example:
        >>> [round(float(each), 3) for each in interval([1.0, 2.0, 3.0])]
        [2.0, -0.484, 4.484]
    """
    given = np.asarray(values, dtype=float)
    given = given[np.isfinite(given)]
    if len(given) < 2:
        return (float(given[0]) if len(given) else float("nan"), float("nan"), float("nan"))
    half = stats.t.ppf((1 + LEVEL) / 2, len(given) - 1) * given.std(ddof=1) / np.sqrt(len(given))
    return float(given.mean()), float(given.mean() - half), float(given.mean() + half)


def paired_p(values: Sequence[float] | pd.Series, baseline: Sequence[float] | pd.Series) -> float:
    """Two-sided p value of Student's paired t test that both have the same mean.

    Args:
        values: One of each seed.
        baseline: Those of the baseline, in the same order of seeds.

    Returns:
        The p value: 1 where no pair differs, NaN for fewer than two pairs. Where all differ by
        the same amount, which has no spread, that of a sign test: 1/4 for three pairs, 1/16 for five.

    Example:
        >>> round(paired_p([0.91, 0.94, 0.95], [0.88, 0.90, 0.93]), 3)
        0.035
        >>> paired_p([0.9, 0.8, 0.7], [0.9, 0.8, 0.7])
        1.0
    """
    differences = _differences(values, baseline)
    if len(differences) < 2:
        return float("nan")
    if np.ptp(differences) <= 1e-9 * np.abs(differences).max():  # the t statistic would be 0/0, or a rounding error's
        return 2.0 ** (1 - len(differences)) if differences[0] else 1.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _differences(values: Sequence[float] | pd.Series, baseline: Sequence[float] | pd.Series) -> np.ndarray:
    """Differences of the pairs that have both values; those that float32 cannot hold are none."""
    one, other = np.asarray(values, dtype=float), np.asarray(baseline, dtype=float)
    both = np.isfinite(one) & np.isfinite(other)
    one, other = one[both], other[both]
    return np.where(np.isclose(one, other, rtol=1e-6, atol=0), 0.0, one - other)


def holm(p_values: Sequence[float] | pd.Series) -> np.ndarray:
    """Correct p values for their number by Holm's method; scipy has none of the family-wise kind.

    Args:
        p_values: Those of all comparisons; NaN where there is none, which counts for nothing.

    Returns:
        Corrected p values in the same order, at most 1.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(6).tolist()
        [0.03, 0.06, 0.06]
    """
    given = np.asarray(p_values, dtype=float)
    corrected = np.full(len(given), np.nan)
    known = np.flatnonzero(np.isfinite(given))
    order = known[np.argsort(given[known])]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * given[order]), 1.0)
    return corrected


def means(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean of the metric over seeds, of every arm, and what it cost.

    Args:
        runs: Cells, as ``Results.runs``.

    Returns:
        A line for each arm, in the order of the cells: task, setting, method; ``seeds`` that were to run and ``used``
        (finished, with a finite value); ``mean``, ``low`` and ``high`` (95 %); means of ``epochs``, ``cpu_seconds`` and
        ``trained_parameters``, each over the cells used; ``chosen``, the values that were chosen for it.
    """
    lines = []
    for arm, cells in runs.groupby(ARM, sort=False):
        used = cells[np.isfinite(cells["value"])]
        mean, low, high = interval(used["value"])
        chosen = [value for value in cells.get("chosen", []) if pd.notna(value)]
        lines.append(
            {
                **dict(zip(ARM, arm, strict=True)),
                "seeds": len(cells),
                "used": len(used),
                "mean": mean,
                "low": low,
                "high": high,
                **{name: used[name].mean() for name in ("epochs", "cpu_seconds", "trained_parameters")},
                "chosen": ", ".join(dict.fromkeys(map(words, chosen))),
            }
        )
    return pd.DataFrame(lines)


def differences(runs: pd.DataFrame, baseline: str, mode: str = "max") -> pd.DataFrame:
    """Differences from the baseline of every other method, for each task and setting, paired by seed.

    Each arm is compared with the baseline's cells at the same values of the axes that both have: a method may have axes
    of its own. Where several settings of the baseline fit, or none, it is not compared.

    Args:
        runs: Cells, as ``Results.runs``.
        baseline: The method to compare with.
        mode: ``"max"`` if larger values are better, else ``"min"``.

    Returns:
        A line for each comparison: task, setting, method; ``pairs``; ``difference``, ``difference_low`` and
        ``difference_high`` (95 %, of this comparison alone); ``p`` and ``p_holm``, corrected for all comparisons;
        ``verdict``.
    """
    columns = [*ARM, "pairs", "difference", "difference_low", "difference_high", "p"]
    lines = []
    for _, of_task in runs.groupby("task", sort=False):
        base = [cells for _, cells in of_task[of_task["method"] == baseline].groupby("setting", sort=False)]
        for arm, cells in of_task[of_task["method"] != baseline].groupby(ARM, sort=False):
            fitting = [each for each in base if _agree(cells["settings"].iloc[0], each["settings"].iloc[0])]
            if len(fitting) == 1:
                one, other = _pairs(cells, fitting[0])
                p = paired_p(one, other) if len(one) >= FEWEST_PAIRS else float("nan")
                lines.append([*arm, len(one), *interval(_differences(one, other)), p])
    frame = pd.DataFrame(lines, columns=columns)
    frame["p_holm"] = holm(frame["p"])
    ahead = frame["difference"] * (1 if mode == "max" else -1)
    real = frame["p_holm"] < 1 - LEVEL
    frame["verdict"] = np.select([frame["p"].isna(), real & (ahead > 0), real], [FEW, BETTER, WORSE], default=NOISE)
    return frame


def _agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[key] == other[key] for key in one.keys() & other.keys())


def _pairs(cells: pd.DataFrame, baseline: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Values of the seeds that both have finite ones of."""
    merged = cells.merge(baseline, on="seed", suffixes=("", "_baseline"))
    known = merged[np.isfinite(merged["value"]) & np.isfinite(merged["value_baseline"])]
    return known["value"], known["value_baseline"]
