"""Which items go together: ItemCF with inverse user frequency, from training sequences alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.sequences.items import SequenceItems

#: Latest items of a user that count: the number of pairs grows with its square.
_MOST = 100
_ROWS = 4096


def similar_items(items: Iterable[Mapping[str, Any]], vocab_size: int, count: int = 1) -> Tensor:
    """Find the items most similar to each item.

    sim(i, j) = sum over users of both of 1 / log(1 + n_user), divided by sqrt(n_i n_j): co-occurrence in which busy
    users and popular items count less (ItemCF-IUF, Breese et al. 1998; as in CoSeRec, Liu et al. 2021, section 3.2).

    Args:
        items: Training sequences; the latest 100 items of each count.
        vocab_size: Largest item id.
        count: Similar items wanted.

    Returns:
        int64 (vocab_size + 1, count), the most similar first, 0 where an item has no (further) similar one.

    Example:
        >>> sequences = SequenceItems.from_lists([[1, 2], [1, 2, 3], [3, 4]])
        >>> similar_items(sequences, vocab_size=4)[:, 0].tolist()
        [0, 2, 1, 4, 3]
    """
    from scipy.sparse import csr_array

    sequences = SequenceItems.from_items(items).latest(_MOST)
    row, ids = sequences.position_rows()[0].numpy(), sequences.flat()
    shape = (len(sequences), vocab_size + 1)
    seen = csr_array((np.ones(len(ids), np.float32), (row, ids)), shape=shape)
    seen.sum_duplicates()
    seen.data[:] = 1.0
    users = np.maximum(np.diff(seen.indptr), 1)
    popularity = np.maximum(np.asarray(seen.sum(0)).reshape(-1), 1.0)
    per_user = np.sqrt(1.0 / np.log1p(users)).astype(np.float32)
    scaled = csr_array((seen.data * np.repeat(per_user, np.diff(seen.indptr)), seen.indices, seen.indptr), shape=shape)
    scaled.data /= np.sqrt(popularity, dtype=np.float32)[scaled.indices]
    found = np.zeros((vocab_size + 1, count), np.int64)
    by_item = scaled.T.tocsr()
    for start in range(0, vocab_size + 1, _ROWS):
        block = (by_item[start : start + _ROWS] @ scaled).tocoo()
        found[start : start + _ROWS] = _best(block.row, block.col, block.data, start, block.shape[0], count)
    return torch.from_numpy(found)


def _best(row: np.ndarray, col: np.ndarray, value: np.ndarray, start: int, rows: int, count: int) -> np.ndarray:
    """The columns of the largest values of each row, its own item left out; (rows, count)."""
    other = row + start != col
    row, col, value = row[other], col[other], value[other]
    # By row, then by falling value; equal values by id, so that the result does not depend on the order of users.
    order = np.lexsort((col, -value, row))
    row, col = row[order], col[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    found = np.zeros((rows, count), np.int64)
    kept = rank < count
    found[row[kept], rank[kept]] = col[kept]
    return found
