"""The figures: what they hold, that they reach TensorBoard, and that they disturb nothing."""

import csv
import io
from dataclasses import replace

import matplotlib
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib import pyplot
from networks import Net, assert_same_state, loader, rows, state, trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_cvxsnn import ConvexReconstruction, reconstruct, spike_dictionary
from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.reports import plots


def fitted(max_epochs=3, **arguments):
    callback = ConvexReconstruction(**({"beta": 0.02, "apply": "replace", "max_overhead": None} | arguments))
    torch.manual_seed(1)
    trainer(callback, max_epochs=max_epochs).fit(Net(), loader(shuffle=True))
    return callback


def lines(axes):
    """Label to points, as drawn."""
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}


def png(figure):
    stream = io.BytesIO()
    figure.savefig(stream)
    return stream.getvalue()


def test_the_figure_holds_the_reports():
    callback = fitted()
    reports = callback.reports
    assert {report.accepted for report in reports} == {True, False}
    figure = callback.plot()
    objective, gap, units, loss, accuracy = figure.axes
    steps = [report.step for report in reports]
    drawn = lines(objective)
    assert drawn["solution"] == [(r.step, r.primal) for r in reports]
    assert drawn["certified lower bound"] == [(r.step, r.dual) for r in reports]
    assert drawn["readout as stored"] == [(r.step, r.dual + r.gap_written) for r in reports]
    assert [shade.get_label() for shade in objective.collections] == ["duality gap", "gap as stored"]
    shaded = objective.collections[0].get_paths()[0].vertices
    for report in reports:
        assert {report.primal, report.dual} <= set(shaded[shaded[:, 0] == report.step, 1])
    assert f"{max(r.gap for r in reports):.1e}" in objective.get_title()
    assert gap.get_yscale() == "log"
    assert lines(gap)["solution"] == [(r.step, r.gap) for r in reports]
    assert lines(gap)["readout as stored"] == [(r.step, r.gap_written) for r in reports]
    for label, field in (("all", "columns"), ("distinct", "distinct"), ("active", "active")):
        assert lines(units)[label] == [(r.step, getattr(r, field)) for r in reports]
    assert lines(units)["dead"] == [(r.step, r.silent + r.saturated) for r in reports]
    for axes, field in ((loss, "held_out_loss"), (accuracy, "accuracy")):
        drawn = lines(axes)
        for when in ("before", "after"):
            assert drawn[when] == [(r.step, getattr(r, f"{field}_{when}")) for r in reports]
        for label, accepted in (("accepted", True), ("rejected", False)):
            expected = [(r.step, getattr(r, f"{field}_after")) for r in reports if r.accepted is accepted]
            assert drawn[label] == expected
    assert all(axes.get_legend() is not None for axes in figure.axes)
    assert steps == sorted(set(steps))


def test_a_squared_loss_has_no_accuracy():
    callback = fitted(1, loss="squared")
    assert [axes.get_ylabel() for axes in callback.plot().axes] == [
        "objective",
        "duality gap",
        "units",
        "held-out loss",
    ]


def test_one_report_is_enough_and_none_is_not():
    report = reconstruct(Net(), loader(), beta=0.02)
    assert len(png(plots.solves([report]))) > 10_000
    assert len(png(plots.solves([replace(report, held_out_loss_before=float("nan"), accuracy_before=None)]))) > 10_000
    with pytest.raises(MisconfigurationException, match=r"no solve to draw yet\. Expected at least one report"):
        ConvexReconstruction().plot()


def test_drawing_changes_nothing_outside():
    reports = fitted(1).reports
    dictionary = SpikeDictionary.from_values(torch.randint(0, 3, (20, 8)).float())
    before = matplotlib.rcParams.copy(), pyplot.get_fignums(), matplotlib.get_backend(auto_select=False)
    png(plots.solves(reports))
    png(plots.dictionary(dictionary))
    png(plots.raster((torch.rand(5, 2, 8) < 0.5).float()))
    assert (matplotlib.rcParams.copy(), pyplot.get_fignums(), matplotlib.get_backend(auto_select=False)) == before


def test_tensorboard_and_csv_get_them(tmp_path):
    callback = ConvexReconstruction(beta=0.02, max_overhead=None)
    loggers = [CSVLogger(tmp_path / "csv", version="v"), TensorBoardLogger(tmp_path, name="board", version="v")]
    torch.manual_seed(1)
    trainer(callback, max_epochs=2, logger=loggers).fit(Net(), loader(), loader(seed=1))
    board = EventAccumulator(str(tmp_path / "board/v"), size_guidance={"images": 0, "scalars": 0})
    board.Reload()
    (image,) = board.Images("convex/solves")
    assert image.step == callback.reports[-1].step == 8
    drawn = Image.open(io.BytesIO(image.encoded_image_string))
    assert drawn.size == tuple(round(100 * inches) for inches in callback.plot().get_size_inches())
    assert len(drawn.convert("RGB").getcolors(10**6)) > 20
    with open(tmp_path / "csv/lightning_logs/v/metrics.csv") as file:
        written = [row for row in csv.DictReader(file) if row["convex/accuracy_after"]]
    assert len(written) == len(callback.reports) == 3
    for field in ("accuracy_before", "accuracy_after", "held_out_loss_after", "dual"):
        expected = [getattr(report, field) for report in callback.reports]
        assert [float(row[f"convex/{field}"]) for row in written] == pytest.approx(expected)
        assert [event.value for event in board.Scalars(f"convex/{field}")] == pytest.approx(expected, rel=1e-6)


class OwnLogger(CSVLogger):
    def log_figure(self, name, figure, step):
        self.figure = name, type(figure).__name__, step


def test_a_logger_of_ones_own_gets_the_figure(tmp_path):
    own, other = OwnLogger(tmp_path / "own"), CSVLogger(tmp_path / "other")
    trainer(ConvexReconstruction(beta=0.02), max_epochs=1, logger=[other, own]).fit(Net(), loader())
    assert own.figure == ("convex/solves", "Figure", 4)


def test_mlflow_gets_the_figure(tmp_path):
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    logger = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", artifact_location=str(tmp_path / "artifacts"))
    trainer(ConvexReconstruction(beta=0.02), max_epochs=1, logger=logger).fit(Net(), loader())
    assert list(tmp_path.rglob("convex/solves.png"))


def test_wandb_gets_the_figure(tmp_path):
    pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    trainer(ConvexReconstruction(beta=0.02), max_epochs=1, logger=logger).fit(Net(), loader())
    assert list(tmp_path.rglob("convex/solves*.png"))


def test_without_a_solve_nothing_is_logged(tmp_path):
    callback = ConvexReconstruction(warm_start=False, every_n_epochs=0, final_solve=False)
    trainer(callback, max_epochs=1, logger=TensorBoardLogger(tmp_path, name="board", version="v")).fit(Net(), loader())
    board = EventAccumulator(str(tmp_path / "board/v"))
    board.Reload()
    assert board.Tags()["images"] == []


def test_objectives_of_different_beta_are_not_joined():
    report = reconstruct(Net(), loader(), beta=0.02)
    reports = [replace(report, step=step, beta=beta) for step, beta in ((0, 0.2), (1, 0.1), (2, 0.1), (3, 0.2))]
    for axes in plots.solves(reports).axes[:2]:
        joined = [tuple(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "-"]
        assert joined == [(0,), (1, 2), (3,)]
        labels = axes.get_legend_handles_labels()[1]
        assert len(labels) == len(set(labels))


def test_validations_are_drawn_over_the_held_out_rows():
    callback = ConvexReconstruction(beta=0.02, max_overhead=None)
    torch.manual_seed(1)
    trainer(callback, max_epochs=2, num_sanity_val_steps=1).fit(Validated(), loader(), loader(seed=1))
    assert [step for step, _ in callback.validations] == [4, 8]
    *_, loss, accuracy = callback.plot().axes
    for axes, name in ((loss, "val_loss"), (accuracy, "val_accuracy")):
        assert lines(axes)[name] == [(step, metrics[name]) for step, metrics in callback.validations]
    again = ConvexReconstruction()
    again.load_state_dict(callback.state_dict())
    assert again.validations == callback.validations


class Validated(Net):
    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", torch.nn.functional.cross_entropy(logits, y))
        self.log("val_accuracy", (logits.argmax(1) == y).float().mean())


# -- spikes -------------------------------------------------------------------------------------------------------


def test_a_raster_is_units_over_time():
    spikes = (torch.rand(12, 3, 2, 5) < 0.3).float()
    figure = plots.raster(spikes, 1 - spikes, sample=1)
    for axes, drawn, name in zip(figure.axes, (spikes, 1 - spikes), ("before", "after"), strict=True):
        (image,) = axes.images
        assert torch.equal(torch.tensor(image.get_array().data), drawn[:, 1].flatten(1).T)  # [units, T]
        assert axes.get_title().startswith(f"{name}, firing rate")
        assert axes.get_xlabel() == "time step"
    assert figure.axes[0].get_ylabel() == "unit"
    png(figure)


@pytest.mark.parametrize(
    ("spikes", "sample", "found"),
    [
        (torch.zeros(4, 3), 0, r"shape \[4, 3\]"),
        (torch.zeros(4, 2, 3), 2, "sample=2"),
        (SpikeDictionary(torch.zeros(3, 4, dtype=torch.uint8)), 0, "Found SpikeDictionary"),
    ],
)
def test_a_raster_of_something_else_is_refused(spikes, sample, found):
    with pytest.raises(MisconfigurationException, match=f"{found}.*plots.dictionary"):
        plots.raster(spikes, sample=sample)


# -- the dictionary -----------------------------------------------------------------------------------------------


def test_the_dictionary_shows_the_first_rows_of_before_and_after_in_the_same_shades():
    values = torch.randint(0, 4, (30, 7)), torch.randint(0, 5, (20, 9))
    values[0][:, 2], values[1][:, 0] = 0, 1
    before, after = (SpikeDictionary.from_values(v.float(), 0.25) for v in values)
    figure = plots.dictionary(before, after, rows=25)
    left, right, _ = figure.axes
    for axes, value, count in ((left, values[0], 25), (right, values[1], 20)):
        (image,) = axes.images
        assert torch.equal(torch.tensor(image.get_array().data), value[:count] * 0.25)
        assert image.get_clim() == (0, 1)
    assert (left.get_title(), right.get_title()) == ("before", "after")
    assert "1 silent, 0 saturated" in left.get_xlabel()
    assert "0 silent, 1 saturated" in right.get_xlabel()
    assert left.get_ylabel() == "first 25 of 30 rows"
    png(figure)


def test_the_dictionary_of_a_dead_network_and_of_packed_bits():
    png(plots.dictionary(SpikeDictionary(torch.zeros(3, 4, dtype=torch.uint8))))
    bits = torch.eye(9, dtype=torch.uint8)
    (image,) = plots.dictionary(SpikeDictionary(bits).packed(), rows=4).axes[0].images
    assert torch.equal(torch.tensor(image.get_array().data), bits[:4].float())


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, None])
def test_rows_that_cannot_be_drawn(wrong):
    with pytest.raises(MisconfigurationException, match="Invalid value rows="):
        plots.dictionary(SpikeDictionary(torch.zeros(3, 4, dtype=torch.uint8)), rows=wrong)


# -- where a dictionary comes from --------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["last", "mean", "sum"])
def test_the_dictionary_of_a_network_is_what_its_readout_receives(reduction):
    torch.manual_seed(2)
    net = Net(reduction).train()
    before, generator = state(net), torch.get_rng_state()
    dictionary = spike_dictionary(net, loader(50, 16))
    assert_same_state(net, before)
    assert net.training
    assert torch.equal(torch.get_rng_state(), generator)
    with torch.no_grad():
        bias = net.readout.bias * (4 if reduction == "sum" else 1)
        predicted = dictionary.to_dense(torch.float32) @ net.readout.weight.T + bias
        torch.testing.assert_close(predicted, net(rows(50)[0]))


def test_a_subset_of_rows_and_a_named_readout():
    net = Net()
    dictionary = spike_dictionary(net, loader(50, 16), readout="readout", max_samples=20, seed=3)
    assert dictionary.shape == (20, 24)
    with pytest.raises(MisconfigurationException, match="nowhere"):
        spike_dictionary(net, loader(50, 16), readout="nowhere")
    with pytest.raises(MisconfigurationException, match="empty"):
        spike_dictionary(net, [])


def test_a_sample_that_is_no_number_is_refused():
    with pytest.raises(MisconfigurationException, match=r"sample='0'. Expected an integer"):
        plots.raster(torch.zeros(5, 2, 8), sample="0")
