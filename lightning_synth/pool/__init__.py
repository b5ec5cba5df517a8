"""Sampled items with the provenance of every row: Parquet shards and a manifest on disk, flat memory at train time."""

from lightning_synth.pool.pool import SyntheticPool

__all__ = ["SyntheticPool"]
