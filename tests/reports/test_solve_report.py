"""A report as a person reads it."""

from dataclasses import replace

import pytest
from networks import Net, loader

from lightning_cvxsnn import reconstruct


def test_a_report_is_a_line_and_a_table():
    with pytest.warns(UserWarning, match=r"brought dead or half dead spiking layers to life: 'hidden.1'\. Half of"):
        report = reconstruct(Net(gain=0.05), loader(), beta=0.02)
    assert "\n" not in report.line()
    assert "units silent" not in report.line()
    head, *rows = str(report).splitlines()
    assert head.startswith(report.reason)
    assert {len(row) - len(row[2:].split("  ", 1)[1].lstrip()) for row in rows} == {21}  # aligned
    assert report.repaired in str(report)
    assert "trained on" not in str(report)
    periodic = replace(report, reason="periodic solve: accepted", relaxation=0.5)
    assert "trained on after a step of 0.5 towards the solution" in str(periodic)
    assert max(map(len, rows)) < 160
