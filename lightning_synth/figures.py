"""Synthetic items drawn beside real ones, for any domain."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_synth.schema import get_domain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Draw = Callable[[Any, Any, Mapping[str, Any]], None]
# Above this size a drawing of nodes and edges shows nothing; the adjacency matrix does.
_MAX_DRAWN_NODES = 150
_MAX_LINES = 6


def sample_figure(
    real: Sequence[Any], synthetic: Sequence[Any], schema: Mapping[str, Any], title: str = "samples"
) -> Figure:
    """Draw real items in the upper row and synthetic ones below.

    Args:
        real: Items.
        synthetic: Items of the same schema.
        schema: Of the items.
        title: Of the figure.

    Returns:
        A matplotlib figure that belongs to no window; close to 2.5 inches per item.

    Example:
        >>> from lightning_synth.testing import tiny_items, tiny_schema
        >>> items = tiny_items("timeseries")
        >>> len(sample_figure(items[:3], items[3:6], tiny_schema("timeseries")).axes)
        6
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(real), len(synthetic), 1)
    figure = Figure(figsize=(2.5 * columns, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, columns, squeeze=False)
    special: dict[str, _Draw] = {"timeseries": _draw_series, "sequence": _draw_sequence}
    if importlib.util.find_spec("rdkit") is not None:
        special["molecule"] = _draw_molecule
    draw: _Draw = special.get(schema["domain"], _draw_graph)
    for row, (name, items) in enumerate((("real", real), ("synthetic", synthetic))):
        for axis, item in zip(axes[row], items, strict=False):
            draw(axis, item, schema)
            axis.set_title(f"{name}{_caption(item, schema)}", fontsize=8)
        for axis in axes[row][len(items) :]:
            axis.set_axis_off()
    if schema["domain"] == "timeseries" and len(real):
        _share_scale(axes, len(real), len(synthetic))
    figure.suptitle(title, fontsize=9)
    return figure


def _caption(item: Any, schema: Mapping[str, Any]) -> str:
    if schema["domain"] == "molecule":
        return f"\n{item.get('smiles') or ''}"
    label = item.get("y") if schema.get("num_classes") and schema["domain"] != "node" else None
    if label is None:
        return ""
    names = schema.get("class_names") or []
    number = int(np.asarray(label).reshape(-1)[0])
    return f", {names[number] if 0 <= number < len(names) else number}"


def _draw_series(axis: Axes, item: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    x = np.asarray(item["x"], dtype=float)
    if "mask" in item:
        x = np.where(np.asarray(item["mask"]), x, np.nan)
    axis.plot(x[:_MAX_LINES].T, linewidth=0.8)
    axis.tick_params(labelsize=6)


def _share_scale(axes: np.ndarray, real: int, synthetic: int) -> None:
    """Give all panels the range of the real ones, widened where a synthetic one leaves it."""
    used = [*axes[0][:real], *axes[1][:synthetic]]
    limits = np.array([axis.get_ylim() for axis in used])
    for axis in used:
        axis.set_ylim(limits[:, 0].min(), limits[:, 1].max())


def _draw_sequence(axis: Axes, item: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    ids = np.asarray(item["item_id"])
    axis.set_axis_off()
    lines = [" ".join(str(value) for value in ids[start : start + 8]) for start in range(0, min(len(ids), 80), 8)]
    axis.text(0.0, 1.0, "\n".join(lines) + (" ..." if len(ids) > 80 else ""), va="top", fontsize=7, family="monospace")


def _draw_graph(axis: Axes, item: Any, schema: Mapping[str, Any]) -> None:
    nodes, edges = int(item.num_nodes), np.asarray(item.edge_index)
    if nodes > _MAX_DRAWN_NODES:
        axis.scatter(edges[1], edges[0], s=0.2, marker=",")
        axis.set_xlim(0, nodes)
        axis.set_ylim(nodes, 0)
        axis.tick_params(labelsize=6)
        return
    place = _layout(nodes, edges)
    axis.set_axis_off()
    if edges.size:
        segments = np.stack([place[edges[0]], place[edges[1]]])
        axis.plot(segments[:, :, 0], segments[:, :, 1], color="0.6", linewidth=0.6, zorder=1)
    types = item.get("x")
    colour = np.asarray(types).reshape(-1) if types is not None and not types.is_floating_point() else None
    if colour is not None and len(colour) == nodes:
        axis.scatter(place[:, 0], place[:, 1], c=colour, cmap="tab10", s=12, zorder=2, vmin=0, vmax=9)
    else:
        axis.scatter(place[:, 0], place[:, 1], color="tab:blue", s=12, zorder=2)


def _draw_molecule(axis: Axes, item: Any, schema: Mapping[str, Any]) -> None:
    from lightning_synth.molecules.draw import molecule_image

    axis.imshow(molecule_image(item, schema))
    axis.set_axis_off()


def _layout(nodes: int, edges: np.ndarray) -> np.ndarray:
    """Node positions (nodes, 2): spring layout if networkx is there, else a circle."""
    if importlib.util.find_spec("networkx") is None:
        angle = 2 * np.pi * np.arange(nodes) / max(nodes, 1)
        return np.stack([np.cos(angle), np.sin(angle)], 1)
    import networkx

    graph = networkx.Graph()
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(edges.T.tolist())
    place = networkx.spring_layout(graph, seed=0)
    return np.array([place[i] for i in range(nodes)]).reshape(nodes, 2)


def item_record(item: Any, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item as plain lists, for JSON.

    Args:
        item: Of the schema's domain.
        schema: Of the item.

    Example:
        >>> import torch
        >>> item_record({"x": torch.zeros(1, 2)}, {"domain": "timeseries"})
        {'x': [[0.0, 0.0]]}
    """
    fields = get_domain(schema).fields(item)
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in fields.items()}
