"""SyntheticPool: what goes in comes out, in memory and on disk, for every domain."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_synth import Generator, SyntheticPool, get_generator
from lightning_synth.checkpoint import state_hash
from lightning_synth.errors import ConfigError, PoolError
from lightning_synth.requests import SampleRequests, Samples
from lightning_synth.schema import collate, item_hashes, num_rows
from lightning_synth.testing import tiny_datamodule, tiny_items, tiny_schema, tiny_series

DOMAINS = ("timeseries", "graph", "node", "molecule", "sequence")


class Toy(Generator):
    """A linear map of noise."""

    domain = "timeseries"
    conditions = ("label", "*")

    def __init__(self, *, width: int = 4, **kwargs):
        super().__init__(width=width, **kwargs)

    def build(self, schema):
        self.net = torch.nn.Linear(self.hparams.width, schema["channels"] * schema["length"])

    def losses(self, batch, rng):
        return {"loss": self.net.weight.square().sum()}

    def sample_batch(self, requests, rng, scale=1.0):
        x = self.net(rng.normal((self.hparams.width,))) * scale
        return {"x": x.reshape(len(requests), self.schema["channels"], -1)}


@pytest.fixture(scope="module")
def toy():
    generator = Toy(schema=tiny_schema("timeseries"))
    generator.is_fitted = True
    return generator


def samples_of(domain, n=7, start=0, accepted=None):
    items, schema = tiny_items(domain), tiny_schema(domain)
    chosen = [items[(start + i) % len(items)] for i in range(n)]
    requests = SampleRequests.make(n, seed=3, start=start, schema=schema)
    accepted = torch.ones(n, dtype=torch.bool) if accepted is None else accepted
    score = {"novelty": torch.arange(n) / n}
    data = chosen if domain == "node" else collate(chosen, schema)
    return Samples(data, requests.index, requests.seed, requests.condition, score, accepted, schema), chosen, schema


@pytest.mark.parametrize("domain", DOMAINS)
def test_items_survive_memory_and_disk(domain, tmp_path):
    first, items, schema = samples_of(domain)
    # A batch of one looks like a batch of equal sizes: its shapes must not bind the rest.
    second, more, _ = samples_of(domain, n=1, start=7)
    pool = SyntheticPool.from_samples([first, second])
    reopened = SyntheticPool.open(pool.save(tmp_path / "pool", shard_size=3))
    assert len(list((tmp_path / "pool").glob("*.parquet"))) == 3
    expected = item_hashes([*items, *more], schema)
    for candidate in (pool, reopened, pickle.loads(pickle.dumps(pool)), pickle.loads(pickle.dumps(reopened))):
        assert len(candidate) == 8
        assert np.array_equal(item_hashes(list(candidate), schema), expected)
        assert np.array_equal(item_hashes([candidate[i] for i in range(8)], schema), expected)
        assert np.array_equal(item_hashes(candidate.__getitems__([5, 0, 7, 5]), schema), expected[[5, 0, 7, 5]])
        assert candidate.content_hash == pool.content_hash
    assert num_rows(collate(reopened[2:5].__getitems__([0, 1, 2]), schema), schema) == 3 or domain == "node"
    frame = pd.read_parquet(tmp_path / "pool")
    assert frame["index"].tolist() == list(range(8)) and len(frame) == 8


def test_rows_carry_their_provenance(toy, tmp_path):
    pool = SyntheticPool.generate(toy, 9, condition={"label": "balanced"}, seed=5, progress=False, licence="CC0-1.0")
    folder = pool.save(tmp_path / "pool")
    frame = pool.to_pandas()
    assert {"x", "y", "index", "seed", "condition.label", "accepted", "is_synthetic", "generation"} <= set(frame)
    assert frame["is_synthetic"].all() and (frame["generation"] == 1).all()
    assert frame["seed"].tolist() == toy.make_requests(9, seed=5).seed.tolist()
    manifest = json.loads((folder / "_manifest.json").read_text())
    assert manifest["generator"]["class"].endswith("Toy") and manifest["generator"]["hparams"]["width"] == 4
    assert manifest["generator"]["state_sha256"] == state_hash(toy.state_dict())
    assert manifest["counts"] == {"requested": 9, "written": 9, "accepted": 9}
    assert manifest["licence"] == "CC0-1.0" and manifest["is_synthetic"] is True
    assert manifest["schema"] == toy.schema and manifest["config"]["seed"] == 5
    assert {"torch", "lightning", "python"} <= set(manifest["packages"])
    # The same in every Parquet file, and it survives pandas.
    stored = json.loads(pq.read_schema(next(folder.glob("*.parquet"))).metadata[b"lightning_synth"])
    assert stored["generator"] == manifest["generator"] and stored["is_synthetic"] is True
    frame.to_parquet(tmp_path / "again.parquet")
    assert pd.read_parquet(tmp_path / "again.parquet").attrs["lightning_synth"]["licence"] == "CC0-1.0"


def test_the_fingerprint_of_the_training_split_travels(tmp_path):
    dm = tiny_datamodule("timeseries")
    generator = get_generator("bootstrap")().fit_on(dm.train_items(), dm.schema)
    folder = SyntheticPool.generate(generator, 3, progress=False).save(tmp_path / "pool")
    manifest = SyntheticPool.open(folder).manifest
    assert manifest["training_fingerprint"]["num_items"] == len(dm.train_items())
    assert manifest["generator"]["name"] == "bootstrap"


def test_generation_does_not_depend_on_the_batch_size(toy):
    a, b = (SyntheticPool.generate(toy, 23, seed=1, batch_size=size, progress=False) for size in (4, 23))
    assert torch.allclose(a.__getitems__(range(23)).tensors["x"], b.__getitems__(range(23)).tensors["x"], atol=1e-4)
    assert np.array_equal(a.labels, b.labels)


def test_progress_bar_and_sampler_options(toy, capsys):
    pool = SyntheticPool.generate(toy, 3, scale=0.0)
    assert "3/3" in capsys.readouterr().err
    assert all(not item["x"].any() for item in pool) and pool.manifest["config"]["sampler_options"] == {"scale": 0.0}


def test_an_empty_pool_is_typed(toy, tmp_path):
    pool = SyntheticPool.generate(toy, 0, progress=False)
    reopened = SyntheticPool.open(pool.save(tmp_path / "pool"))
    for candidate in (pool, reopened):
        assert len(candidate) == 0 and list(candidate) == []
        assert candidate.schema == toy.schema and "index" in candidate.to_pandas()
    with pytest.raises(ConfigError):
        SyntheticPool.generate(toy, -1, progress=False)
    with pytest.raises(IndexError):
        pool[0]


def test_rejected_rows_are_kept_but_not_shown(tmp_path):
    accepted = torch.tensor([True, False, True, True, False, True, True])
    samples, _, _ = samples_of("timeseries", accepted=accepted)
    folder = SyntheticPool.from_samples(samples, only_accepted=False).save(tmp_path / "pool")
    shown, full = SyntheticPool.open(folder), SyntheticPool.open(folder, only_accepted=False)
    assert len(full) == 7 and len(shown) == 5 == len(SyntheticPool.from_samples(samples))
    assert shown.to_pandas(payload=False)["index"].tolist() == [0, 2, 3, 5, 6]
    assert torch.equal(shown[1]["x"], full[2]["x"])
    assert shown.manifest["counts"] == {"requested": 7, "written": 7, "accepted": 5}


def test_rows_are_ordered_by_index_whatever_wrote_them(tmp_path):
    late, _, _ = samples_of("timeseries", n=4, start=4)
    early, _, _ = samples_of("timeseries", n=4)
    pool = SyntheticPool.from_samples([late, early])
    reopened = SyntheticPool.open(pool.save(tmp_path / "pool"))
    assert pool.to_pandas()["index"].tolist() == reopened.to_pandas()["index"].tolist() == list(range(8))
    with pytest.raises(PoolError, match="index 4 occurs twice"):
        SyntheticPool.from_samples([late, late])


def test_where(toy):
    pool = SyntheticPool.generate(toy, 9, condition={"label": "balanced"}, progress=False)
    assert pool.labels.tolist() == [0, 1, 2] * 3
    assert [int(item["y"]) for item in pool.items(where={"label": 1})] == [1, 1, 1]
    assert len(pool.items({"label": [0, 2], "accepted": True})) == 6
    assert pool.items(lambda rows: rows["index"] > 6).to_pandas()["index"].tolist() == [7, 8]
    assert len(pool.items(np.arange(9) < 2)) == 2 and len(pool.items([8, 0])) == 2
    assert len(pool.items().items({"label": 1}).items({"index": [1, 4]})) == 2
    with pytest.raises(PoolError, match="no column 'colour'"):
        pool.items({"colour": 1})
    with pytest.raises(PoolError, match="mask"):
        pool.items(np.ones(3, bool))


def test_it_is_a_sequence(toy):
    pool = SyntheticPool.generate(toy, 5, progress=False)
    assert torch.equal(pool[-1]["x"], pool[4]["x"]) and torch.equal(pool[np.int64(1)]["x"], pool[1]["x"])
    assert len(pool[1:]) == 4 and len(pool[[0, 3]]) == 2 and len(list(reversed(pool))) == 5
    for wrong in (5, -6, [7]):
        with pytest.raises(IndexError):
            pool[wrong]
    item = pool[0]
    item["x"].zero_()
    assert pool[0]["x"].any(), "items are copies"


@pytest.mark.parametrize("context", ("fork", "spawn"))
def test_dataloader_workers_read_the_same_items(toy, tmp_path, context):
    folder = SyntheticPool.generate(toy, 20, progress=False).save(tmp_path / "pool")
    pool = SyntheticPool.open(folder)
    loader = DataLoader(pool, batch_size=6, num_workers=1, multiprocessing_context=context, collate_fn=_stacked)
    assert torch.equal(torch.cat(list(loader)), pool.__getitems__(range(20)).tensors["x"])


def _stacked(items):
    return items.tensors["x"]


def test_conditions_are_columns():
    items = tiny_series(12, conditions=("rpm",))
    from lightning_synth.schema import describe

    generator = Toy(schema=describe(items, "timeseries"))
    generator.is_fitted = True
    pool = SyntheticPool.generate(generator, 4, condition={"rpm": 0.5, "label": 1}, progress=False)
    frame = pool.to_pandas()
    assert frame["condition.rpm"].tolist() == [0.5] * 4 and frame["rpm"].tolist() == [0.5] * 4
    assert len(pool.items({"rpm": 0.5})) == 4


def test_content_hash_notices_every_part(toy):
    one, same, other = (SyntheticPool.generate(toy, 4, seed=seed, progress=False) for seed in (1, 1, 2))
    assert one.content_hash == same.content_hash != other.content_hash
    assert one.content_hash != one[:3].content_hash


def test_save_refuses_to_mix_pools(toy, tmp_path):
    pool = SyntheticPool.generate(toy, 4, progress=False)
    folder = pool.save(tmp_path / "pool")
    with pytest.raises(PoolError, match="already holds a pool"):
        pool.save(folder)
    longer = SyntheticPool.generate(toy, 6, progress=False)
    assert len(SyntheticPool.open(longer.save(folder, overwrite=True))) == 6
    assert len(list(folder.glob("*.parquet"))) == 1


def test_a_field_named_like_a_provenance_column(tmp_path):
    """The node mask ``is_synthetic`` is part of the item; the column of that name says it of the row."""
    samples, items, _ = samples_of("node", n=2)
    for item in samples.data:
        item.is_synthetic = torch.arange(item.num_nodes) % 2 == 0
    pool = SyntheticPool.open(SyntheticPool.from_samples(samples).save(tmp_path / "pool"))
    assert torch.equal(pool[1].is_synthetic, torch.arange(items[1].num_nodes) % 2 == 0)
    assert pool[1].is_synthetic.dtype == torch.bool and pool.to_pandas()["is_synthetic"].all()
