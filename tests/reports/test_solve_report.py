"""A report as a person reads it."""

import pytest
from networks import Net, loader

from lightning_cvxsnn import reconstruct


def test_a_report_is_a_line_and_a_table():
    with pytest.warns(UserWarning, match=r"brought dead spiking layers to life: 'hidden.1'\. They sent"):
        report = reconstruct(Net(gain=0.05), loader(), beta=0.02)
    assert "\n" not in report.line()
    assert "units silent" not in report.line()
    head, *rows = str(report).splitlines()
    assert head.startswith(report.reason)
    assert {len(row) - len(row[2:].split("  ", 1)[1].lstrip()) for row in rows} == {21}  # aligned
    assert report.repaired in str(report)
    assert max(map(len, rows)) < 160
