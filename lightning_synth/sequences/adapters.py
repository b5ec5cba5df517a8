"""Sequences for other libraries, and back: RePlay, RecTools, RecBole, plain text. None of them needs to be installed.

What goes out are items with their numbers; give ``item_ids`` and ``user_ids`` (of an `InteractionDataModule`) to write
the original ones. Weights go where the format has a place for them: `to_rectools` and `to_replay_parquet`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.requests import mix_seed
from lightning_synth.sequences.augmentation import Augmentation
from lightning_synth.sequences.items import SequenceItems

if TYPE_CHECKING:
    import pandas as pd

Items = Iterable[Mapping[str, Any]]


def to_text(
    items: Items, path: str | Path, *, item_ids: np.ndarray | None = None, user_ids: np.ndarray | None = None
) -> Path:
    r"""Write one line a user, ``user item item ...``: the form of S3-Rec, CoSeRec, RepPad and others.

    Args:
        items: Sequences.
        path: File to write.
        item_ids: Original id of item i at position i - 1; None writes the numbers.
        user_ids: Original id of user u at position u; None counts the lines from 1.

    Returns:
        The path.

    Example:
        >>> import tempfile
        >>> file = to_text(SequenceItems.from_lists([[3, 1], [2, 1, 2]]), tempfile.mkdtemp() + "/log.txt")
        >>> file.read_text()
        '1 3 1\n2 2 1 2\n'
    """
    sequences = SequenceItems.from_items(items)
    names = _originals(sequences.flat(), item_ids).astype(str)
    users = _users(sequences, user_ids)
    ends = sequences.lengths.cumsum(0).tolist()
    rows = zip(users, [0, *ends], ends, strict=False)
    return _written(path, "".join(" ".join([str(user), *names[start:end]]) + "\n" for user, start, end in rows))


def to_pairs_text(items: Items, path: str | Path) -> Path:
    """Write one line an interaction, ``user item``, in the order of time: the form of SASRec.

    Args:
        items: Sequences.
        path: File to write.

    Returns:
        The path.
    """
    sequences = SequenceItems.from_items(items)
    user = _users(sequences, None)[sequences.position_rows()[0].numpy()]
    lines = [f"{u} {i}\n" for u, i in zip(user.tolist(), sequences.flat().tolist(), strict=True)]
    return _written(path, "".join(lines))


def to_frame(items: Items, *, item_ids: np.ndarray | None = None, user_ids: np.ndarray | None = None) -> pd.DataFrame:
    """Return one row an interaction.

    Args:
        items: Sequences.
        item_ids: Original id of item i at position i - 1; None keeps the numbers.
        user_ids: Original id of user u at position u; None counts the sequences from 0.

    Returns:
        Columns ``user_id``, ``item_id``, ``timestamp`` (the position, where items have no time), ``weight`` (how much
        predicting the interaction counts) and ``is_synthetic``.

    Example:
        >>> to_frame(SequenceItems.from_lists([[3, 1]])).to_dict("list")["weight"]
        [0.0, 1.0]
    """
    import pandas as pd

    sequences = SequenceItems.from_items(items)
    row, index = (part.numpy() for part in sequences.position_rows())
    first = (sequences.lengths.cumsum(0) - sequences.lengths).numpy()
    place = np.arange(len(row)) - first[row]
    columns = {name: values.numpy()[index] for name, values in sequences.columns.items()}
    weight = columns.get("target_weight", (place > 0).astype(np.float32))
    if sequences.last_only:
        weight = weight * (place == sequences.lengths.numpy()[row] - 1)
    return pd.DataFrame(
        {
            "user_id": _users(sequences, user_ids, first=0)[row],
            "item_id": _originals(columns["item_id"], item_ids),
            "timestamp": columns.get("timestamp", place),
            "weight": weight.astype(np.float32),
            "is_synthetic": columns.get("item_is_synthetic", np.zeros(len(row), bool)),
        }
    )


def to_rectools(items: Items, **ids: np.ndarray | None) -> pd.DataFrame:
    """Return the interactions that ``rectools.dataset.Dataset.construct`` takes.

    Its sequence models use ``weight`` as the weight of a target in the loss; 0 is context only. RecTools orders by
    ``datetime``: where items have no time, or ties, the position within the sequence is added in nanoseconds, so that
    the order survives.

    Args:
        items: Sequences.
        **ids: ``item_ids`` and ``user_ids`` as `to_frame` takes them.

    Returns:
        Columns ``user_id``, ``item_id``, ``weight``, ``datetime``.
    """
    import pandas as pd

    frame = to_frame(items, **ids)
    place = frame.groupby("user_id", sort=False).cumcount()
    seconds = pd.to_datetime(frame["timestamp"], unit="s").astype("datetime64[ns]")
    frame["datetime"] = seconds + pd.to_timedelta(place, unit="ns")
    return frame[["user_id", "item_id", "weight", "datetime"]]


def to_replay_parquet(items: Items, path: str | Path, schema: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Write one row a user with list columns, as RePlay's ``ParquetModule`` reads it.

    RePlay counts items from 0 and pads with the number of items; ours are 1..vocab_size, so each goes out less 1.

    Args:
        items: Sequences.
        path: File to write: ``train_path`` of the module is one file.
        schema: Of the items, with ``vocab_size`` and ``max_length``.

    Returns:
        The columns as the module's ``metadata`` of one split wants them: ``{"user_id": {}, "item_id": {"shape": 50,
        "padding": 12101}, ...}``. Column ``target_weight`` says how much a position counts as a target.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sequences = SequenceItems.from_items(items)
    index = sequences.position_rows()[1]
    offsets = np.concatenate([[0], sequences.lengths.cumsum(0).numpy()])
    flat = {name: values[index].numpy() for name, values in sequences.columns.items()}
    flat |= {"item_id": flat["item_id"] - 1, "target_weight": to_frame(sequences)["weight"].to_numpy()}
    lists = {name: pa.LargeListArray.from_arrays(offsets, pa.array(values)) for name, values in flat.items()}
    user = sequences.rows.get("user_id", torch.arange(len(sequences)))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"user_id": user.numpy(), **lists}), target)
    padding = {name: {"shape": int(schema["max_length"]), "padding": 0} for name in lists}
    padding["item_id"]["padding"] = int(schema["vocab_size"])
    return {"user_id": {}, **padding}


def to_recbole(data: Any, folder: str | Path, name: str = "synthetic", synthetic: Items = ()) -> dict[str, Any]:
    """Write the three files of RecBole's ``benchmark_filename``, which switches its own prefix expansion off.

    The training file holds a row for every target of every training sequence whose ``target_weight`` is above 0
    (RecBole has no weights between); validation and test files hold one row a user.

    Args:
        data: An `InteractionDataModule`.
        folder: RecBole's ``data_path``; files go to ``folder/name``.
        name: Of the data set.
        synthetic: Further training sequences.

    Returns:
        The configuration to give to RecBole.
    """
    root = Path(folder) / name
    numbers = data.schema["max_length"]
    parts = {
        "train": _benchmark_rows([*data.train_items(), *synthetic], numbers, every=True),
        "valid": _benchmark_rows(data.val_items(), numbers, every=False),
        "test": _benchmark_rows(data.test_items(), numbers, every=False),
    }
    for part, rows in parts.items():
        _written(root / f"{name}.{part}.inter", "user_id:token\titem_id_list:token_seq\titem_id:token\n" + rows)
    return {
        "dataset": name,
        "data_path": str(folder),
        "benchmark_filename": list(parts),
        "alias_of_item_id": ["item_id_list"],
        "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
        "MAX_ITEM_LIST_LENGTH": int(numbers),
        "train_neg_sample_args": None,
    }


def _benchmark_rows(items: Items, most: int, every: bool) -> str:
    """Rows of an atomic file: user, history, next item."""
    lines = []
    for i, item in enumerate(items):
        ids = item["item_id"].tolist()
        user = int(item["user_id"]) if int(item.get("user_id", -1)) >= 0 else f"synthetic{i}"
        weight = item["target_weight"].tolist() if "target_weight" in item else [1.0] * len(ids)
        ends = [t for t in range(1, len(ids)) if weight[t] > 0] if every else [len(ids) - 1]
        lines += [f"{user}\t{' '.join(map(str, ids[max(0, t - most) : t]))}\t{ids[t]}\n" for t in ends]
    return "".join(lines)


class ReplayTransform(nn.Module):
    """Operators as a batch transform of RePlay, for the front of its ``ParquetModule(transforms={"train": [...]})``.

    A dict goes in, a dict comes out; only fields of shape (batch, length) are touched. RePlay counts items from 0 and
    pads with the number of items: both are translated.

    Args:
        operators: As `lightning_synth.sequences.augmentation.make_operators` takes them.
        num_items: Items of the catalogue.
        padding_value: Id of padding; None: ``num_items``, RePlay's default.
        item_name: Of the column of items; its mask is called ``<item_name>_mask``.
        prob: Probability with which an operator acts on a row.
        seed: With the number of the batch and the row it fixes all draws.

    Example:
        >>> batch = {"item_id": torch.tensor([[5, 0, 1, 2]]), "item_id_mask": torch.tensor([[False, True, True, True]])}
        >>> ReplayTransform(["delete"], num_items=5, prob=1.0)(batch)["item_id_mask"].tolist()
        [[False, False, True, True]]
    """

    def __init__(
        self,
        operators: Any,
        num_items: int,
        padding_value: int | None = None,
        *,
        item_name: str = "item_id",
        prob: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_items < 1:
            raise ConfigError(f"num_items must be at least 1, got {num_items}")
        self.augmentation = Augmentation(operators, prob, seed)
        self.num_items, self.item_name, self.seed = num_items, item_name, seed
        self.padding_value = num_items if padding_value is None else padding_value
        self.calls = 0

    def fit(self, items: Items) -> ReplayTransform:
        """Fit the operators that need training sequences (`Insert`, `Substitute`).

        Args:
            items: Training sequences in our numbers, 1..num_items.
        """
        self.augmentation.fit(items, {"vocab_size": self.num_items})
        return self

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Augment a batch.

        Args:
            batch: With ``<item_name>`` and ``<item_name>_mask``, left-padded.

        Returns:
            The same fields.

        Raises:
            DataError: If one is missing.
        """
        mask_name = f"{self.item_name}_mask"
        if self.item_name not in batch or mask_name not in batch:
            raise DataError(f"the batch has no {self.item_name!r} or no {mask_name!r}: it has {sorted(batch)}")
        ids, mask = batch[self.item_name], batch[mask_name].bool()
        others = {k: v for k, v in batch.items() if v.shape == ids.shape and k not in (self.item_name, mask_name)}
        inner = {"item_id": torch.where(mask, ids + 1, 0), "padding_mask": mask, **others}
        draw = (mix_seed(self.seed, self.calls) >> 1) + torch.arange(len(ids), device=ids.device)
        self.calls += 1
        done = self.augmentation(inner, draw)
        kept = done["padding_mask"]
        return {
            **batch,
            **{name: done[name] for name in others},
            self.item_name: torch.where(kept, done["item_id"] - 1, self.padding_value),
            mask_name: kept,
        }


def _originals(ids: np.ndarray, originals: np.ndarray | None) -> np.ndarray:
    return ids if originals is None else np.asarray(originals)[ids - 1]


def _users(sequences: SequenceItems, originals: np.ndarray | None, first: int = 1) -> np.ndarray:
    """A name for every sequence: the original user where there is one, else its number."""
    count = np.arange(first, first + len(sequences))
    if originals is None or "user_id" not in sequences.rows:
        return count
    known = sequences.rows["user_id"].numpy()
    # A second sequence of a user is another one: libraries would join them into one.
    own = np.zeros(len(known), bool)
    own[np.unique(known, return_index=True)[1]] = True
    names = np.asarray(originals).astype(str)[known.clip(min=0)]
    return np.where(own & (known >= 0), names, np.char.add("synthetic", np.arange(len(known)).astype(str)))


def _written(path: str | Path, text: str) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target
