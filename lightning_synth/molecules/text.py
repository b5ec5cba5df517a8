"""Text encoders: a self-contained one of hashed character n-grams, or any sentence-transformers model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import ConfigError, MissingExtraError

#: Odd 64-bit constants: base of the polynomial hash, and multiplier that spreads its bits (splitmix64).
_BASE, _SPREAD = np.uint64(0x100000001B3), np.uint64(0xBF58476D1CE4E5B9)


class TextEncoder(Protocol):
    """Anything that turns texts into vectors."""

    width: int

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return float32 (texts, width); zeros for the empty text."""
        ...


class NgramEncoder:
    """Hashed character n-grams: no vocabulary, no download, the same vector on every machine.

    Every n-gram of the lower-cased text adds plus or minus one to one place, as its hash says (Weinberger et al. 2009,
    "Feature Hashing for Large Scale Multitask Learning", eq. 1); counts are damped by their square root and the vector
    has length 1. Words are marked off by spaces, so that short words have n-grams of their own.

    Args:
        width: Size of the vector.
        sizes: Numbers of characters in an n-gram.

    Example:
        >>> encode = NgramEncoder(width=64)
        >>> near = encode(["an aromatic ester", "aromatic esters", "inorganic salt"])
        >>> bool(near[0] @ near[1] > near[0] @ near[2]), encode([""]).abs().sum().item()
        (True, 0.0)
    """

    def __init__(self, width: int = 1024, sizes: Sequence[int] = (3, 4, 5)) -> None:
        if width < 2 or min(sizes, default=0) < 1:
            raise ConfigError(f"width must be at least 2 and sizes at least 1, got {width} and {tuple(sizes)}")
        self.width, self.sizes = width, tuple(sizes)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return float32 (texts, width)."""
        if not len(texts):
            return torch.zeros(0, self.width)
        return torch.from_numpy(np.stack([self._one(text) for text in texts]))

    def _one(self, text: str) -> np.ndarray:
        words = " ".join(text.lower().split())
        characters = np.frombuffer(f" {words} ".encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
        sums = np.zeros(self.width)
        for size in self.sizes if words else ():
            if len(characters) < size:
                continue
            key = np.full(len(characters) - size + 1, size, dtype=np.uint64)
            for shift in range(size):
                key = key * _BASE + characters[shift : shift + len(key)]
            # The high bits are the well mixed ones: one of them is the sign, the others are the place.
            key = (key * _SPREAD) >> np.uint64(32)
            place, sign = (key >> np.uint64(1)) % np.uint64(self.width), 1 - 2 * (key & np.uint64(1)).astype(float)
            sums += np.bincount(place.astype(np.int64), weights=sign, minlength=self.width)
        vector = np.sign(sums) * np.sqrt(np.abs(sums))
        return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


class SentenceEncoder:
    """A sentence-transformers model; its weights are not trained and not part of the checkpoint.

    Args:
        name: Of the model, or a folder.

    Raises:
        MissingExtraError: If sentence-transformers is not installed.
    """

    def __init__(self, name: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise MissingExtraError(
                f"text_encoder={name!r} needs sentence-transformers: pip install sentence-transformers; "
                "or use text_encoder='ngrams'"
            ) from error
        self.model = SentenceTransformer(name, device="cpu")
        self.width = int(self.model.get_sentence_embedding_dimension())

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return float32 (texts, width), of length 1; zeros for the empty text."""
        vectors = torch.as_tensor(self.model.encode(list(texts), normalize_embeddings=True)).float()
        return vectors * torch.tensor([bool(text) for text in texts])[:, None]


@functools.cache
def text_encoder(name: str) -> TextEncoder:
    """Return an encoder by name.

    Args:
        name: ``"ngrams"``, or the name of a sentence-transformers model.

    Example:
        >>> text_encoder("ngrams").width
        1024
    """
    return NgramEncoder() if name == "ngrams" else SentenceEncoder(name)
