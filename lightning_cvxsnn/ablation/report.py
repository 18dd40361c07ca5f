"""One page about a sweep: ``report.html``, which needs no network, with tables and figures as files beside it."""

import importlib.metadata
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import itables
import jinja2
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from markupsafe import Markup

from lightning_cvxsnn.ablation import figures, tables
from lightning_cvxsnn.ablation.results import Results, read_history, read_reports, read_results, words
from lightning_cvxsnn.ablation.summary import summarise

#: Lines of a cell's log that its page shows.
_LOG_LINES = 80
_WRITTEN = ".written"  # names of a report's figures: the next one deletes these, and nothing else
_SOLVE_FIELDS = (
    *("epoch", "accepted", "reason", "beta", "l1_ratio", "primal", "gap", "gap_written", "rows", "columns", "active"),
    *("held_out_loss_before", "held_out_loss_after", "seconds_patterns", "seconds_solve"),
)


def write_report(*folders: str | Path, output: str | Path | None = None) -> Path:
    """Write tables, figures and one page about a sweep.

    Args:
        folders: Run folders of ``cvxsnn ablate``: one, or the shards of one sweep.
        output: Folder to write ``report.html``, ``results.csv``, ``results.md`` and ``figures/`` to; None: the first
            run folder.

    Returns:
        Path of ``report.html``.

    Raises:
        MisconfigurationException: If a folder is no run folder, or the folders are of different sweeps.
    """
    results = read_results(*folders)
    target = Path(folders[0] if output is None else output)
    if target.is_file():
        raise MisconfigurationException(f"Found the file {target}. Expected a folder: the report writes several files.")
    target.mkdir(parents=True, exist_ok=True)
    frame = tables.comparison(results)
    table = tables.results_table(results, frame)
    sentences = summarise(results, frame)
    frame.to_csv(target / "results.csv", index=False)
    (target / "results.md").write_text("\n\n".join([*sentences, table.markdown()]), encoding="utf-8")
    with figures.style():
        drawn = _figures(results, target / "figures")
        cells = [_cell(cell, results) for cell in results.cells.to_dict("records")]
    page = _template().render(
        results=results,
        sentences=sentences,
        table=table,
        solves=tables.solves_table(results),
        choices=tables.choices_table(results),
        cells_table=tables.cells_table(results),
        drawn=drawn,
        cells=cells,
        today=date.today().isoformat(),
        version=importlib.metadata.version("lightning-cvxsnn"),
        datatables=_datatables(),
    )
    path = target / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _figures(results: Results, folder: Path) -> dict[str, dict[str, list[tuple[str, Markup]]]]:
    """Write all figures; for each task and kind their settings and elements."""
    folder.mkdir(exist_ok=True)
    written = folder / _WRITTEN
    for name in written.read_text(encoding="utf-8").splitlines() if written.exists() else []:
        (folder / name).unlink(missing_ok=True)  # of an earlier report, of cells that may be gone
    elements: dict[str, dict[str, list[tuple[str, Markup]]]] = {}
    names: list[str] = []
    for number, panel in enumerate(figures.panels(results)):
        names += [f"{panel.name}.png", f"{panel.name}.svg"]
        panel.figure.savefig(folder / f"{panel.name}.png", dpi=150)
        text = figures.svg(panel.figure)
        (folder / f"{panel.name}.svg").write_text(text, encoding="utf-8")
        element = (panel.setting, Markup(figures.inline(text, f"figure-{number}")))
        elements.setdefault(panel.task, {}).setdefault(panel.kind, []).append(element)
    written.write_text("\n".join(names), encoding="utf-8")
    return elements


def _cell(cell: Mapping[str, Any], results: Results) -> dict[str, Any]:
    """What a cell's page shows."""
    folder = cell["folder"]
    reports = read_reports(folder)
    figure = figures.cell_figure(read_history(folder / "history.csv"), reports, figures.curve_metric(results))
    log = folder / "log.txt"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    fields = [name for name in _SOLVE_FIELDS if any(name in report for report in reports)]
    return {
        "id": cell["id"],
        "state": cell["state"],
        "error": cell["error"],
        "facts": tables.facts(cell, results),
        "metrics": {name: f"{value:.6g}" for name, value in cell["metrics"].items() if value is not None},
        "figure": None if figure is None else Markup(figures.inline(figures.svg(figure), f"cell-{cell['id']}")),
        "fields": fields,
        "reports": [[_short(report.get(name)) for name in fields] for report in reports],
        "configs": [(path.name, path.read_text(encoding="utf-8")) for path in sorted(folder.glob("config*.yaml"))],
        "log": "\n".join(lines[-_LOG_LINES:]),
        "left_out": max(len(lines) - _LOG_LINES, 0),
    }


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else words(value)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lightning_cvxsnn.ablation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _datatables() -> dict[str, Markup]:
    """DataTables as itables bundles it, and the licences of both."""
    script = Path(itables.options.dt_bundle)
    text = script.read_text(encoding="utf-8")
    for word in ("<!--", "<script", "</script"):  # inside a script element these would end or change it
        text = text.replace(word, word.replace("<", r"\x3C"))
    files = importlib.metadata.files("itables") or []
    licences = [str(file.read_text()) for file in files if file.name == "LICENSE"]
    return {
        "script": Markup(text),
        "style": Markup(script.with_suffix(".css").read_text(encoding="utf-8")),
        "licence": Markup("\n").join(map(jinja2.filters.escape, licences)),
    }
