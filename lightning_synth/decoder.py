"""The causal transformer that generators of token sequences share: rotary positions, a cache of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_synth.nn import rotate


class KeyValueCache:
    """Keys and values of the positions so far, of all blocks; grows by doubling."""

    def __init__(self) -> None:
        self.length = 0
        self.data: dict[int, Tensor] = {}

    def put(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append one position of one block, each (rows, heads, 1, dim), and return those of all positions."""
        pair = torch.stack([key, value])
        if block not in self.data:
            self.data[block] = F.pad(pair, (0, 0, 0, 15))
        elif self.length == self.data[block].shape[3]:
            self.data[block] = F.pad(self.data[block], (0, 0, 0, self.length))
        self.data[block][:, :, :, self.length] = pair[:, :, :, 0]
        keys, values = self.data[block][:, :, :, : self.length + 1]
        return keys, values

    def keep(self, rows: Tensor) -> None:
        """Forget all other rows."""
        self.data = {block: pair[:, rows] for block, pair in self.data.items()}


class DecoderBlock(nn.Module):
    """Causal self-attention with rotary positions, and a gated feed-forward part, each on a normalised input.

    Args:
        dim: Features.
        heads: Attention heads; ``dim`` is a multiple of twice their number.
        dropout: Of attention weights.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout, hidden = heads, dropout, 8 * dim // 3
        self.norm, self.qkv, self.out = nn.RMSNorm(dim), nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.norm_mlp, self.up, self.down = nn.RMSNorm(dim), nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor, angle: Tensor, cache: KeyValueCache | None = None, block: int = 0) -> Tensor:
        """Map (rows, n, dim) to the same shape; with a cache, x is the one position that follows it."""
        query, key, value = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = rotate(query, angle), rotate(key, angle)
        if cache is not None:
            key, value = cache.put(block, key, value)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=cache is None)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        gate, up = self.up(self.norm_mlp(x)).chunk(2, -1)
        out: Tensor = x + self.down(F.silu(gate) * up)
        return out


class Decoder(nn.Module):
    """Blocks of a causal transformer, between embedded inputs and normalised states.

    Rotary positions (Su et al. 2021, arXiv 2104.09864) and gated feed-forward parts (Shazeer 2020, arXiv 2002.05202).

    Args:
        dim: Features.
        depth: Blocks.
        heads: Attention heads; ``dim`` is a multiple of twice their number.
        dropout: Of attention weights.

    Example:
        >>> decoder, x = Decoder(dim=8, depth=2, heads=2).eval(), torch.randn(3, 5, 8)
        >>> cache = KeyValueCache()
        >>> one_by_one = torch.stack([decoder.step(x[:, i], cache) for i in range(5)], 1)
        >>> bool(torch.allclose(one_by_one, decoder(x), atol=1e-5))
        True
    """

    rate: Tensor

    def __init__(self, dim: int, depth: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(dim, heads, dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(dim)
        half = dim // heads // 2
        self.register_buffer("rate", 10000 ** -(torch.arange(half) / half), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the state (rows, n, dim) at every position of inputs (rows, n, dim)."""
        angle = torch.arange(x.shape[1], device=x.device)[:, None] * self.rate
        for block in self.blocks:
            x = block(x, angle)
        out: Tensor = self.norm(x)
        return out

    def step(self, x: Tensor, cache: KeyValueCache) -> Tensor:
        """Return the state (rows, dim) at the position behind those of the cache, which takes it in.

        Args:
            x: (rows, dim), its input.
            cache: Of all positions before.
        """
        x, angle = x[:, None], cache.length * self.rate[None]
        for i, block in enumerate(self.blocks):
            x = block(x, angle, cache, i)
        cache.length += 1
        out: Tensor = self.norm(x[:, 0])
        return out
