"""Intervals, paired tests and Holm's correction, against scipy's and hand-written formulas."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_cvxsnn.ablation.statistics import BETTER, FEW, NOISE, WORSE, differences, holm, interval, means, paired_p

accuracies = st.floats(0, 1, allow_subnormal=False)


def at(settings, **values):
    """A line for each value of each method, at these settings."""
    setting = ", ".join(f"{key} = {value}" for key, value in settings.items())
    shared = {"task": "digits", "setting": setting, "settings": settings}
    shared |= {"epochs": 5.0, "cpu_seconds": 2.0, "trained_parameters": 100.0}
    return pd.DataFrame(
        [
            {**shared, "method": method, "seed": seed, "value": value}
            for method, listed in values.items()
            for seed, value in enumerate(listed)
        ]
    )


def cells(values):
    return at({}, **values)


# -- formulas ---------------------------------------------------------------------------------------------------------


@given(st.lists(accuracies, min_size=2, max_size=12))
def test_the_interval_is_students(values):
    mean, low, high = interval(values)
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert mean == pytest.approx(sum(values) / len(values))
    if error > 0:
        assert (low, high) == pytest.approx(stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error))
    else:
        assert low == high == mean


def test_intervals_hold_the_mean_as_often_as_they_say():
    draws = np.random.default_rng(0).normal(0.8, 0.02, (4000, 3))
    held = [low <= 0.8 <= high for _, low, high in map(interval, draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)


@given(st.lists(st.tuples(accuracies, accuracies), min_size=3, max_size=10))
def test_p_is_that_of_scipys_paired_test(pairs):
    one, other = np.array(pairs).T
    apart = one - other
    if np.ptp(apart) > 1e-3:  # where the statistic is no rounding error
        close = np.isclose(one, other, rtol=1e-6, atol=0)
        expected = stats.ttest_rel(np.where(close, other, one), other).pvalue
        assert paired_p(one, other) == pytest.approx(expected, rel=1e-6)


@given(st.lists(accuracies, max_size=8))
def test_identical_arms_differ_by_nothing(values):
    p = paired_p(values, values)
    assert p == 1.0 if len(values) > 1 else math.isnan(p)


def test_what_float32_cannot_hold_is_no_difference():
    values = [0.9, 0.91, 0.93]
    assert paired_p([float(np.float32(value)) for value in values], values) == 1.0


def test_equal_differences_leave_no_doubt():
    assert paired_p([0.9, 0.8, 0.7], [0.8, 0.7, 0.6]) == 0.25


def holm_by_hand(p_values):
    """Holm's procedure as it is told: step down until a hypothesis is kept; the adjusted value is where it would be."""
    count = len(p_values)
    adjusted = {}
    worst = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        worst = max(worst, (count - rank) * p_values[index])
        adjusted[index] = min(1.0, worst)
    return [adjusted[index] for index in range(count)]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_the_step_down_procedure(p_values):
    assert holm(p_values) == pytest.approx(holm_by_hand(p_values))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """A hypothesis is rejected where every intersection with it is, each by Bonferroni: Holm in other words."""
    everyone = range(len(p_values))
    for index in everyone:
        families = [s for n in range(1, len(p_values) + 1) for s in itertools.combinations(everyone, n) if index in s]
        closed = max(min(1.0, len(s) * min(p_values[i] for i in s)) for s in families)
        assert holm(p_values)[index] == pytest.approx(closed)


@given(st.lists(st.floats(0, 1), max_size=10), st.integers(0, 3))
def test_comparisons_without_a_p_value_cost_the_others_nothing(p_values, missing):
    given_values = [*p_values, *[float("nan")] * missing]
    assert holm(given_values)[: len(p_values)] == pytest.approx(holm(p_values))
    assert np.isnan(holm(given_values)[len(p_values) :]).all()


# -- verdicts ---------------------------------------------------------------------------------------------------------


def verdicts(values, baseline="sg", mode="max"):
    frame = differences(cells(values), baseline, mode)
    return dict(zip(frame["method"], frame["verdict"], strict=True))


SG = [0.80, 0.82, 0.84, 0.81]


def test_verdicts():
    better = [value + lead for value, lead in zip(SG, (0.10, 0.11, 0.09, 0.10), strict=True)]
    noise = [value + lead for value, lead in zip(SG, (0.05, -0.04, 0.01, -0.03), strict=True)]
    found = {"sg": SG, "hybrid": better, "same": noise, "lsm": [value - 0.3 for value in better]}
    assert verdicts(found) == {"hybrid": BETTER, "same": NOISE, "lsm": WORSE}
    assert verdicts(found, mode="min") == {"hybrid": WORSE, "same": NOISE, "lsm": BETTER}


@settings(max_examples=30, deadline=None)
@given(st.lists(accuracies, min_size=3, max_size=6), st.integers(2, 5))
def test_identical_arms_are_never_real(values, arms):
    found = verdicts({"sg": values} | {f"m{number}": values for number in range(arms)})
    assert set(found.values()) == {NOISE}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(accuracies, accuracies, accuracies), min_size=3, max_size=6), st.randoms())
def test_the_order_of_cells_does_not_matter(rows, random):
    sg, a, b = zip(*rows, strict=True)
    frame = cells({"sg": sg, "a": a, "b": b})
    shuffled = list(range(len(frame)))
    random.shuffle(shuffled)
    columns = ["method", "pairs", "difference", "p", "p_holm", "verdict"]
    one, other = (
        differences(each, "sg")[columns].sort_values("method", ignore_index=True)
        for each in (frame, frame.iloc[shuffled])
    )
    pd.testing.assert_frame_equal(one, other, rtol=1e-6, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(accuracies, accuracies), min_size=3, max_size=6))
def test_exchanging_method_and_baseline_turns_the_difference(rows):
    sg, a = zip(*rows, strict=True)
    one, other = (differences(cells({"sg": sg, "a": a}), base).iloc[0] for base in ("sg", "a"))
    assert one["difference"] == pytest.approx(-other["difference"])
    assert one["p"] == pytest.approx(other["p"], rel=1e-6)
    assert {one["verdict"], other["verdict"]} in ({NOISE}, {BETTER, WORSE})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(accuracies, accuracies), min_size=3, max_size=5), st.integers(1, 8))
def test_more_comparisons_make_nothing_real(rows, more):
    """A further arm may turn a real difference into noise, and never the other way round."""
    sg, a = zip(*rows, strict=True)
    alone = verdicts({"sg": sg, "a": a})["a"]
    among = verdicts({"sg": sg, "a": a} | {f"m{number}": sg for number in range(more)})["a"]
    assert among in (alone, NOISE)


def test_one_sweep_of_nothing_is_called_real_once_in_twenty_at_most():
    """Accuracies over 360 rows, six methods that do not differ, three seeds: anything real in 5 % of sweeps."""
    random = np.random.default_rng(0)
    wrong, sweeps = 0, 600
    for _ in range(sweeps):
        easy = random.normal(0.9, 0.01, 3)
        base, *others = (random.binomial(360, np.clip(easy, 0, 1)) / 360 for _ in range(6))
        wrong += bool(np.any(holm([paired_p(other, base) for other in others]) < 0.05))
    assert wrong <= sweeps * (0.05 + 3 * math.sqrt(0.05 * 0.95 / sweeps))


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_are_too_few(seeds):
    found = {"sg": SG[:seeds], "hybrid": [value + 0.1 for value in SG[:seeds]]}
    assert verdicts(found) == {"hybrid": FEW}
    frame = differences(cells(found), "sg")
    assert frame["difference"].item() == pytest.approx(0.1)
    assert frame["p"].isna().all()


def test_pairs_that_miss_a_side_are_left_out():
    nan = float("nan")
    found = {"sg": [0.8, nan, 0.84, 0.81, 0.83], "hybrid": [0.9, 0.5, nan, 0.92, 0.91]}
    (line,) = differences(cells(found), "sg").to_dict("records")
    assert line["pairs"] == 3
    assert line["difference"] == pytest.approx(np.mean([0.1, 0.11, 0.08]))
    assert line["p"] == pytest.approx(stats.ttest_rel([0.9, 0.92, 0.91], [0.8, 0.81, 0.83]).pvalue)


def test_pairs_are_matched_by_seed_not_by_place():
    frame = cells({"sg": SG, "hybrid": [value + 0.1 for value in SG]})
    frame = pd.concat([frame[frame["method"] == "sg"], frame[frame["method"] == "hybrid"].iloc[::-1]])
    assert differences(frame, "sg")["p"].item() == 1 / 8


def test_a_method_with_an_axis_of_its_own_meets_the_baseline_without_it():
    arms = [
        at({"lr": 0.1}, sg=SG),
        at({"lr": 0.2}, sg=[value - 0.2 for value in SG]),
        at({"lr": 0.1, "K": 2}, hybrid=SG),
        at({"lr": 0.2, "K": 4}, hybrid=SG),
    ]
    frame = differences(pd.concat(arms), "sg")
    assert frame["difference"].tolist() == pytest.approx([0.0, 0.2])


def test_an_arm_that_fits_several_of_the_baselines_settings_is_not_compared():
    arms = [at({}, hybrid=SG), at({"lr": 0.1}, sg=SG), at({"lr": 0.2}, sg=SG)]
    assert len(differences(pd.concat(arms), "sg")) == 0


# -- means ------------------------------------------------------------------------------------------------------------


def test_means_count_the_seeds_that_gave_a_number_and_only_their_budget():
    frame = cells({"sg": [0.8, float("nan"), 0.9]})
    frame["cpu_seconds"] = [1.0, 100.0, 3.0]
    (line,) = means(frame).to_dict("records")
    assert (line["seeds"], line["used"], line["mean"], line["cpu_seconds"]) == (3, 2, pytest.approx(0.85), 2.0)


def test_a_single_seed_has_a_mean_and_no_interval():
    (line,) = means(cells({"sg": [0.8]})).to_dict("records")
    assert line["mean"] == 0.8
    assert math.isnan(line["low"])
    assert math.isnan(line["high"])


def test_an_arm_of_failures_has_neither():
    (line,) = means(cells({"sg": [float("nan")] * 3})).to_dict("records")
    assert (line["seeds"], line["used"]) == (3, 0)
    assert math.isnan(line["mean"])
