"""A study as a page: the verdict first, then the arms, the samples beside real ones, and how to reproduce it."""

from __future__ import annotations

import base64
import html
import io
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_synth.schema import labels
from lightning_synth.study_result import StudyResult, in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
.verdict{font-size:1.25rem;font-weight:600;border-left:.4rem solid #2b6cb0;padding:.6rem 1rem;background:#f2f6fb}
table{border-collapse:collapse;font-size:.85rem;margin:1rem 0}
td,th{padding:.25rem .6rem;border-bottom:1px solid #dde3ea;text-align:right}
td:nth-child(-n+4),th:nth-child(-n+4){text-align:left}img{max-width:100%}pre{background:#f6f8fa;
padding:1rem;overflow:auto;font-size:.8rem}.small{color:#57606a;font-size:.9rem}
"""


def write_report(result: StudyResult, folder: Path) -> Path:
    """Write the page and its parts.

    Args:
        result: Of a study.
        folder: Made if absent.

    Returns:
        Path of ``report.html``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"gains": gain_figure(result)}
    if "schema" in result.examples:
        drawn = class_figure(result.examples)
        if drawn is not None:
            figures["samples"] = drawn
    images = {name: _save(figure, folder / f"{name}.png") for name, figure in figures.items()}
    (folder / "result.json").write_text(result.to_json())
    result.table.to_csv(folder / "table.csv", index=False)
    for arm, evaluation in result.evaluations.items():
        (folder / f"evaluation_{arm}.json").write_text(evaluation.to_json())
    page = folder / "report.html"
    page.write_text(_page(result, images), encoding="utf-8")
    return page


def _save(figure: Figure, path: Path) -> str:
    """Write a PNG and return it as a data URI, so that the page is one file."""
    buffer = io.BytesIO()
    # No software version in the file: two runs of one study give the same bytes.
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    path.write_bytes(buffer.getvalue())
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def gain_figure(result: StudyResult) -> Figure:
    """Draw the paired gain of every arm over real-only training, with its 95 % interval.

    Args:
        result: Of a study.
    """
    from matplotlib.figure import Figure

    table = result.table
    table = table[table["policy"] != "real"]
    settings = list(table[["shots", "downstream"]].drop_duplicates().itertuples(index=False, name=None))
    rows = max(len(table) // max(len(settings), 1), 1)
    figure = Figure(figsize=(4.2 * max(len(settings), 1) + 2, 0.32 * rows + 1.6), layout="constrained")
    axes = figure.subplots(1, max(len(settings), 1), squeeze=False, sharex=True)[0]
    for axis, (shots, downstream) in zip(axes, settings, strict=False):
        part = table[(table["shots"] == shots) & (table["downstream"] == downstream)].iloc[::-1]
        y = np.arange(len(part))
        colors = ["#8a94a3" if arm in result.baselines else "#2b6cb0" for arm in part["arm"]]
        spread = np.nan_to_num(np.stack([part["gain"] - part["gain_low"], part["gain_high"] - part["gain"]]))
        axis.hlines(y, part["gain"] - spread[0], part["gain"] + spread[1], color=colors, lw=2)
        axis.scatter(part["gain"], y, color=colors, zorder=3)
        axis.axvline(0, color="black", lw=0.8)
        axis.set_yticks(y, [f"{arm} ({policy})" for arm, policy in zip(part["arm"], part["policy"], strict=True)])
        axis.set_title(f"{downstream}, {shots} shots" if shots != "all" else str(downstream), fontsize=10)
        axis.set_xlabel(f"gain in {in_words(result.metric)} over real only")
    for axis in axes[1:]:
        axis.tick_params(labelleft=False)
    return figure


def class_figure(examples: Mapping[str, Any], max_classes: int = 5, per_class: int = 3) -> Figure | None:
    """Draw real items and samples of each arm side by side, a row per class.

    Args:
        examples: Arm name (and ``real``) to items, with ``schema``.
        max_classes: Classes shown.
        per_class: Items of each.

    Returns:
        The figure, or None for domains that this page does not draw.
    """
    from matplotlib.figure import Figure

    schema = examples["schema"]
    arms = [name for name in examples if name != "schema"]
    if schema["domain"] != "timeseries" or len(arms) < 2:
        return None
    classes = list(range(min(max(schema["num_classes"], 1), max_classes)))
    figure = Figure(figsize=(2.3 * len(arms), 1.5 * len(classes)), layout="constrained")
    axes = figure.subplots(len(classes), len(arms), squeeze=False, sharey="row", sharex=True)
    for column, arm in enumerate(arms):
        items = examples[arm]
        y = labels(items, schema)
        for row, label in enumerate(classes):
            axis = axes[row][column]
            for i in np.flatnonzero(y == label)[:per_class] if y is not None else range(per_class):
                axis.plot(np.asarray(items[int(i)]["x"])[0], lw=0.7, alpha=0.8)
            axis.tick_params(labelsize=6)
            if row == 0:
                axis.set_title(arm, fontsize=9)
            if column == 0 and schema["num_classes"]:
                axis.set_ylabel(str(schema["class_names"][label])[:14], fontsize=8)
    return figure


def _html_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    def cell(value: Any) -> str:
        if isinstance(value, float):
            return "" if np.isnan(value) else f"{value:.3f}"
        return html.escape(str(value))

    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell(row[name])}</td>" for name in columns) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _page(result: StudyResult, images: Mapping[str, str]) -> str:
    from lightning_synth import __version__

    columns = [
        *("shots downstream arm policy".split()),
        *(["metric"] if result.metric == "score" else []),
        result.metric,
        *("low high gain gain_low gain_high p_holm over_classical repetitions".split()),
    ]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Does synthetic data help?</title>",
        f"<style>{_STYLE}</style><body>",
        f"<p class=verdict>{html.escape(result.verdict)}</p>",
        f"<p class=small>Scores are {html.escape(in_words(result.metric))} on real test data. Gains are improvements, "
        "paired with real-only training on the same fold, draw and seed; intervals are 95 % over independent draws. "
        "Grey arms are trivial generators. All arms of a model had the same number of steps and the same settings; "
        "nothing was tuned on test data.</p>",
        *(f"<img alt={name} src='{uri}'>" for name, uri in images.items()),
        "<h2>Arms</h2>",
        _html_table(result.table.to_dict("records"), columns),
    ]
    for arm, evaluation in result.evaluations.items():
        parts += [
            f"<h2>Samples of {html.escape(arm)} beside their floors</h2>",
            f"<div>{evaluation.table.to_html()}</div>",
        ]
    parts += [
        "<h2>Run time</h2>",
        f"<p>{result.seconds:.0f} s in this run, {platform.machine()}, {platform.python_implementation()} "
        f"{platform.python_version()}, lightning_synth {__version__}.</p>",
        "<h2>How to reproduce</h2><p>Save this as <code>study.json</code> and run "
        "<code>lightning-synth study -c study.json</code>.</p>",
        f"<pre>{html.escape(json.dumps(result.config, indent=1))}</pre></body></html>",
    ]
    return "\n".join(parts)
