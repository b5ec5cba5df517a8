"""Windows of a multivariate series: dicts with ``x`` (channels, length)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import DataError
from lightning_synth.items import StackedItems
from lightning_synth.schema.base import PROVENANCE, Domain, Items, Schema, class_summary, joint_rows, summarise

_OWN = ("x", "y", "mask", *PROVENANCE)
#: What models hold beside the conditions: which rows keep theirs, and what of a window is given.
_RESERVED = ("keep", "given")


class TimeSeriesDomain(Domain):
    """Items ``{"x": float32 (channels, length), "y": int64, "mask": bool (length,), conditions: float32}``."""

    name = "timeseries"
    structure = ("channels", "length", "num_classes", "conditions", "ragged")

    def describe(self, items: Items, **known: Any) -> Schema:
        """Compute shape, classes, conditions and per-channel statistics (masked steps left out)."""
        if not len(items):
            raise DataError("0 training windows: nothing to describe")
        stacked = StackedItems.from_items(items)
        _check_fields(stacked)
        x, mask = stacked.tensors["x"].double(), stacked.tensors.get("mask")
        observed = torch.ones(len(x), 1, x.shape[-1]) if mask is None else mask[:, None].double()
        count = observed.sum((0, 2)).clamp(min=1)
        mean = (x * observed).sum((0, 2)) / count
        std = ((x - mean[:, None]).square() * observed).sum((0, 2)).div(count).sqrt()
        conditions = {key: value.double().numpy() for key, value in stacked.tensors.items() if key not in _OWN}
        labels = self.labels(stacked)
        schema: Schema = {
            "domain": self.name,
            "channels": x.shape[1],
            "length": x.shape[2],
            "num_train": len(x),
            **class_summary(labels, known),
            "mean": mean.tolist(),
            "std": torch.where(std > 1e-6 * (1 + mean.abs()), std, 1.0).tolist(),
            "conditions": {key: summarise(value) for key, value in conditions.items()},
            "condition_rows": self._joint(labels, conditions),
            "ragged": mask is not None,
            "padded_at_end": mask is not None and not bool((mask[:, 1:].bool() & ~mask[:, :-1].bool()).any()),
            "normal_class": None,
            "sampling_rate": None,
            "bearing": None,
            "channel_names": None,
            "layout": None,
        }
        return {**schema, **{key: value for key, value in known.items() if key not in ("num_classes", "class_names")}}

    @staticmethod
    def _joint(labels: np.ndarray | None, conditions: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
        if not conditions:
            return {}
        return joint_rows({**({} if labels is None else {"label": labels}), **conditions})

    def validate(self, items: Items, schema: Mapping[str, Any]) -> None:
        """Check shapes, finiteness and labels."""
        if not len(items):
            return
        shape = (schema["channels"], schema["length"])
        if not isinstance(items, StackedItems):
            for i, item in enumerate(items):
                if tuple(item["x"].shape) != shape:
                    raise DataError(f"window {i}: x has shape {tuple(item['x'].shape)}, expected {shape}")
        stacked = StackedItems.from_items(items)
        _check_fields(stacked)
        x = stacked.tensors["x"]
        if tuple(x.shape[1:]) != shape:
            raise DataError(f"window 0: x has shape {tuple(x.shape[1:])}, expected {shape} (channels, length)")
        if not x.is_floating_point():
            raise DataError(f"x is {x.dtype}, expected float32")
        bad = ~torch.isfinite(x)
        if bool(bad.any()):
            i, c, t = (int(v) for v in bad.nonzero()[0])
            raise DataError(
                f"window {i}, channel {c}, step {t}: x is {float(x[i, c, t])} "
                f"({int(bad.any(2).any(1).sum())} windows affected); impute or drop them first"
            )
        labels, classes = self.labels(stacked), schema.get("num_classes", 0)
        if classes and labels is None:
            raise DataError("label y is missing, but the schema has classes")
        if labels is not None and len(labels) and classes and not 0 <= labels.min() <= labels.max() < classes:
            wrong = int(np.flatnonzero((labels < 0) | (labels >= classes))[0])
            raise DataError(f"window {wrong}: label y is {labels[wrong]}, outside 0..{classes - 1}")

    def collate(self, items: Items, schema: Mapping[str, Any]) -> dict[str, Tensor]:
        """Stack the fields; no items give empty tensors of the right shape."""
        stacked = StackedItems.from_items(items)
        if stacked.tensors:
            return dict(stacked.tensors)
        empty = {"x": torch.zeros(0, schema["channels"], schema["length"])}
        if schema.get("num_classes"):
            empty["y"] = torch.zeros(0, dtype=torch.int64)
        return {**empty, **{name: torch.zeros(0) for name in schema.get("conditions", {})}}

    def uncollate(self, batch: Any) -> StackedItems:
        """Return views of the rows."""
        return StackedItems(batch)

    def num_rows(self, batch: Any) -> int:
        """Count windows."""
        return len(batch["x"])

    def matches(self, batch: Any) -> bool:
        """A dict with a 3-D floating ``x``, or a tuple that starts with such a tensor."""
        x = batch.get("x") if isinstance(batch, dict) else batch[0] if isinstance(batch, (tuple, list)) else batch
        return isinstance(x, Tensor) and x.ndim == 3 and x.is_floating_point()

    def complete(self, batch: Any, condition: Mapping[str, Tensor], schema: Mapping[str, Any]) -> dict[str, Tensor]:
        """Add ``y``, the continuous conditions and, for ragged data, a full mask."""
        done = dict(batch)
        for name, value in condition.items():
            done.setdefault("y" if name == "label" else name, value)
        if schema.get("ragged") and "mask" not in done:
            done["mask"] = torch.ones(len(done["x"]), done["x"].shape[-1], dtype=torch.bool, device=done["x"].device)
        return done

    def finite(self, batch: Any) -> Tensor:
        """Rows whose ``x`` is finite."""
        return torch.isfinite(batch["x"]).flatten(1).all(1)

    def features(self, items: Items, schema: Mapping[str, Any]) -> np.ndarray:
        """Standardised values, flattened; masked steps are 0."""
        stacked = StackedItems.from_items(items)
        if not len(stacked):
            return np.zeros((0, schema["channels"] * schema["length"]))
        mean, std = (torch.tensor(schema[key], dtype=torch.float64)[:, None] for key in ("mean", "std"))
        z = (stacked.tensors["x"].double() - mean) / std
        if "mask" in stacked.tensors:
            z = z * stacked.tensors["mask"][:, None]
        return z.flatten(1).numpy()

    def labels(self, items: Items) -> np.ndarray | None:
        """The field ``y``."""
        stacked = StackedItems.from_items(items)
        y = stacked.tensors.get("y")
        if y is not None and y.is_floating_point() and bool((y != y.round()).any()):
            wrong = int((y != y.round()).nonzero()[0, 0])
            raise DataError(
                f"window {wrong}: label y is {float(y[wrong])}; classes are whole numbers: give numbers to predict or "
                "to condition on another name"
            )
        return None if y is None else y.long().numpy()


def _check_fields(items: StackedItems) -> None:
    """Refuse masks, labels and conditions of another form than one bool a step and one number a window."""
    for name, value in items.tensors.items():
        if name == "mask":
            length = items.tensors["x"].shape[-1]
            if value.dtype != torch.bool or tuple(value.shape[1:]) != (length,):
                raise DataError(
                    f"window 0: mask is {value.dtype} {tuple(value.shape[1:])}; it must be bool ({length},), True "
                    "where the step was observed"
                )
        elif name in _RESERVED:
            raise DataError(f"the field {name!r} means something else to models of windows: rename it")
        elif name != "x" and value.ndim != 1:
            raise DataError(
                f"window 0: {name} has shape {tuple(value.shape[1:])}; labels and conditions are one number a window"
            )
        elif name not in _OWN and not bool(torch.isfinite(value).all()):
            wrong = int((~torch.isfinite(value)).nonzero()[0, 0])
            raise DataError(f"window {wrong}: condition {name!r} is {float(value[wrong])}")
