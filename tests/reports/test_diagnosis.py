"""A diagnosis as a table and as a figure."""

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure

from lightning_cvxsnn import Diagnosis, LayerHealth, plots

LAYERS = [
    LayerHealth("net.1", 10, 0.25, 1, 2, 8, deviation=0.9, width=0.3, error=0.4, accuracy=0.75),
    LayerHealth("net.3", 20, 0.0, 20, 0, 1, error=1.0, accuracy=0.1),
]


def test_the_table():
    title, heading, first, second, *rest = str(Diagnosis(LAYERS, 200, refusal="No.")).splitlines()
    assert title == "2 spiking layers on 200 rows"
    headings = ["layer", "state", "units", "firing rate", "silent", "saturated", "distinct", "spread/width"]
    assert heading.split() == " ".join([*headings, "probe error", "probe accuracy"]).split()
    assert first.split() == ["net.1", "alive", "10", "0.2500", "1", "2", "8", "3.00", "0.400", "75.0", "%"]
    assert second.split() == ["net.3", "dead", "20", "0.0000", "20", "0", "1", "1.000", "10.0", "%"]
    assert len({len(line) for line in (heading, first, second)}) == 1
    assert rest == ["", "ConvexReconstruction would refuse this network:", "  No."]


def test_states():
    assert LayerHealth("", 20, 0.1, 10, 8, 4).state == "poor"
    assert LayerHealth("", 20, 0.1, 10, 9, 3).state == "dead"
    assert LayerHealth("", 20, 0.1, 0, 0, 10).state == "alive"


def test_the_figure():
    figure = Diagnosis(LAYERS, 200).plot()
    assert isinstance(figure, Figure)
    rate, dead, accuracy = figure.axes
    assert [bar.get_height() for bar in rate.patches] == [0.25, 0.0]
    assert [bar.get_height() for bar in dead.patches] == pytest.approx([0.1, 1.0, 0.2, 0.0])
    assert list(accuracy.lines[0].get_ydata()) == [0.75, 0.1]
    assert [label.get_text() for label in accuracy.get_xticklabels()] == ["net.1", "net.3"]


def test_the_figure_of_real_targets_shows_the_variance_explained():
    figure = plots.layers([LayerHealth("net.1", 10, 0.25, 1, 2, 8, error=0.25)])
    assert list(figure.axes[2].lines[0].get_ydata()) == [0.75]
    assert "variance" in figure.axes[2].get_ylabel()


def test_without_layers_there_is_nothing_to_draw():
    with pytest.raises(MisconfigurationException, match="no layer to draw"):
        plots.layers([])
