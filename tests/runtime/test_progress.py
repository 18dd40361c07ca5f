"""Progress of loops and solvers: who listens is told, in parts of the enclosing step; nobody else pays."""

import math

import pytest

from lightning_cvxsnn.runtime.progress import listening, progress_step, report_gap, report_progress


def told(action):
    """What a listener is told during ``action``."""
    heard = []
    with listening(lambda *what: heard.append(what)):
        action()
    report_progress(1, 2)  # nobody listens any more
    return heard


def test_steps_are_reported_as_they_are():
    assert told(lambda: [report_progress(i, 3, f"round {i}") for i in range(2)]) == [
        (0, 3, "round 0"),
        (1, 3, "round 1"),
    ]


def test_without_a_listener_a_step_is_a_plain_block():
    with progress_step(0, 2):
        report_progress(1, 2)
        report_gap(0.1, 1e-6, 1.0)


def test_a_step_does_not_go_back():
    def rounds():
        with progress_step(1, 3):
            for done in (1, 4, 2, 8):
                report_progress(done, 4)

    assert [done for done, *_ in told(rounds)] == [1, 1.25, 2, 2, 2]


def test_the_gap_counts_decades():
    heard = told(lambda: [report_gap(gap, 1e-6, 10.0) for gap in (math.inf, 20.0, 1.0, 1e-3, 1e-7, 0.0)])
    assert [done for done, _, _ in heard] == pytest.approx([0, 0, 100 / 7, 400 / 7, 100, 100])
    assert {total for _, total, _ in heard} == {100}
    assert heard[3][2] == "gap 1e-03"


@pytest.mark.parametrize("objective", [0.0, 1e-7, math.inf, math.nan])
def test_an_objective_that_counts_no_decades_is_not_reported(objective):
    assert told(lambda: report_gap(0.1, 1e-6, objective)) == []


def test_parts_of_a_step():
    def rounds():
        for index in range(2):
            with progress_step(index, 2, "path"):
                for inner in range(2):
                    with progress_step(inner, 2):
                        report_progress(1, 4, "gap")
        report_progress(1, 5)

    heard = told(rounds)
    done = [round(d, 4) for d, *_ in heard]
    assert done == [*sorted(done[:-1]), 1]
    assert done == [0, 0, 0.125, 0.5, 0.625, 1, 1, 1.125, 1.5, 1.625, 1]
    assert [note for *_, note in heard[:4]] == ["path", "path", "gap", "path"]
    assert [total for _, total, _ in heard] == [2] * 10 + [5]
