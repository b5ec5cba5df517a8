"""Schemas, batching, storage and hashing of every domain."""

import json

import numpy as np
import pytest
import torch

from lightning_synth import schema as S
from lightning_synth.errors import DataError, SchemaError
from lightning_synth.items import StackedItems
from lightning_synth.testing import tiny_items

DOMAINS = ("timeseries", "graph", "node", "molecule", "sequence")


def _fields(item, schema):
    return S.get_domain(schema).fields(item)


def _same(a, b, schema):
    one, two = _fields(a, schema), _fields(b, schema)
    assert one.keys() == two.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, torch.as_tensor(two[key])) and value.dtype == torch.as_tensor(two[key]).dtype, key
        else:
            assert value == two[key], key


@pytest.mark.parametrize("domain", DOMAINS)
def test_schema_is_plain_json_and_items_are_valid(domain):
    items = tiny_items(domain)
    schema = S.describe(items, domain)
    assert json.loads(json.dumps(schema)) == schema and schema["domain"] == domain
    S.validate(items, schema)


@pytest.mark.parametrize("domain", DOMAINS)
def test_arrow_round_trip_is_exact(domain):
    items = tiny_items(domain)
    schema = S.describe(items, domain)
    table = S.to_arrow(items, schema)
    assert table.num_rows == len(items)
    for a, b in zip(items, S.from_arrow(table, schema), strict=True):
        _same(a, b, schema)


@pytest.mark.parametrize("domain", [d for d in DOMAINS if d != "node"])
def test_collate_and_uncollate_are_inverse(domain):
    items = tiny_items(domain)
    schema = S.describe(items, domain)
    batch = S.collate(items, schema)
    assert S.num_rows(batch, schema) == len(items)
    assert np.array_equal(S.item_hashes(S.uncollate(batch, schema), schema), S.item_hashes(items, schema))
    assert S.num_rows(S.collate([], schema), schema) == 0


@pytest.mark.parametrize("domain", DOMAINS)
def test_features_are_finite_one_row_an_item(domain):
    items = tiny_items(domain)
    schema = S.describe(items, domain)
    table = S.features(items, schema)
    assert table.shape[0] == len(items) and np.isfinite(table).all()


@pytest.mark.parametrize("domain", [d for d in DOMAINS if d not in ("node",)])
def test_domain_is_recognised_from_a_batch(domain):
    items = tiny_items(domain)
    assert S.infer_domain(S.collate(items, S.describe(items, domain))) == domain


def test_hashes_see_content_not_container():
    items = tiny_items("timeseries")
    schema = S.describe(items, "timeseries")
    assert np.array_equal(S.item_hashes(items, schema), S.item_hashes(list(items), schema))
    other = StackedItems({**items.tensors, "x": items.tensors["x"] + 1e-3})
    assert not np.isin(S.item_hashes(other, schema), S.item_hashes(items, schema)).any()


def test_fingerprint_finds_the_leaked_items():
    items = tiny_items("timeseries")
    schema = S.describe(items, "timeseries")
    found = S.overlap(S.fingerprint(items[:8], schema), S.item_hashes(items, schema))
    assert found[:8].all() and not found[8:].any()


def test_masked_steps_do_not_enter_the_statistics():
    x = torch.ones(4, 1, 10)
    x[..., 5:] = 0
    mask = torch.arange(10) < 5
    schema = S.describe(StackedItems({"x": x, "mask": mask.expand(4, 10)}), "timeseries")
    assert schema["mean"] == [1.0] and schema["ragged"]
    masks = torch.tensor([[True, True, False], [True, False, True]])
    items = StackedItems({"x": torch.zeros(2, 1, 3), "mask": masks})
    assert [S.describe(part, "timeseries")["padded_at_end"] for part in (items[:1], items[1:], items)] == [1, 0, 0]


def test_statistics_are_those_of_numpy_and_a_constant_channel_gets_scale_one():
    x = torch.randn(50, 2, 9) * 3 + 7
    x[:, 1] = 4.0
    schema = S.describe(StackedItems({"x": x}), "timeseries")
    assert schema["mean"][0] == pytest.approx(float(x[:, 0].double().mean()))
    assert schema["std"] == [pytest.approx(float(x[:, 0].double().std(unbiased=False))), 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["x"][3, 1].__setitem__(5, float("nan")), "window 3, channel 1, step 5"),
        (lambda t: t["x"][2, 0].__setitem__(0, float("inf")), "window 2, channel 0, step 0"),
        (lambda t: t["y"].__setitem__(4, -1), "window 4: label"),
    ],
)
def test_bad_windows_are_named(change, message):
    items = tiny_items("timeseries")
    schema = S.describe(items, "timeseries")
    tensors = {key: value.clone() for key, value in items.tensors.items()}
    change(tensors)
    with pytest.raises(DataError, match=message):
        S.validate(StackedItems(tensors), schema)


def test_bad_graphs_and_sequences_are_named():
    graphs = tiny_items("graph")
    schema = S.describe(graphs, "graph")
    broken = graphs[0].clone()
    broken.edge_index = torch.tensor([[0, 99], [99, 0]])
    broken.edge_attr = None
    with pytest.raises(DataError, match="graph 1: edge_index names node 99"):
        S.validate([graphs[1], broken], schema)
    with pytest.raises(DataError, match="0 is padding"):
        S.validate([{"item_id": torch.tensor([0, 1])}], {"domain": "sequence", "vocab_size": 3, "max_length": 4})


def test_foreign_batches():
    batch = (torch.randn(8, 3, 24), torch.arange(8) % 2)
    schema = S.infer_schema(batch)
    assert schema["layout"] == ["x", "y"] and schema["channels"] == 3 and schema["num_classes"] == 2
    back = S.like_source(S.canonical(batch, schema), schema)
    assert isinstance(back, tuple) and torch.equal(back[0], batch[0])
    with pytest.raises(SchemaError, match="could not infer.*'image'"):
        S.infer_schema({"image": torch.zeros(2, 3)})


def test_schema_diff_names_what_differs():
    schema = S.describe(tiny_items("timeseries"), "timeseries")
    assert S.schema_diff(schema, dict(schema)) == ""
    assert "length: expected" in S.schema_diff(schema, {**schema, "length": 7})
    assert "domain" in S.schema_diff(schema, {"domain": "graph"})


def test_stacked_items_behave_like_a_sequence():
    items = StackedItems({"x": torch.arange(6.0).view(6, 1, 1), "y": torch.arange(6)})
    assert len(items[2:4]) == 2 and items[-1]["y"] == 5 and len(items[[]]) == 0
    assert items[torch.tensor([True, False] * 3)].tensors["y"].tolist() == [0, 2, 4]
    with pytest.raises(IndexError):
        items[6]
    with pytest.raises(ValueError, match="same number of rows"):
        StackedItems({"x": torch.zeros(2), "y": torch.zeros(3)})


@pytest.mark.parametrize(
    ("field", "match"),
    [
        ({"mask": torch.ones(4)}, "mask is torch.float32"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, "must be bool .4,."),
        ({"y": torch.tensor([1])}, "y has shape .1,."),
        ({"place": torch.zeros(3)}, "place has shape .3,."),
        ({"rpm": torch.tensor(float("nan"))}, "condition 'rpm' is nan"),
        ({"name": "a"}, "field 'name' is text"),
        ({"keep": torch.tensor(1.0)}, "'keep' means something else"),
    ],
)
def test_fields_of_another_form_are_named(field, match):
    with pytest.raises(DataError, match=match):
        S.describe([{"x": torch.zeros(2, 4), **field}] * 2, "timeseries")


@pytest.mark.parametrize(
    ("y", "match"), [([0, -1, 1], "item 1: label y is -1"), ([0.0, 1.0, 0.5], "window 2: label y is 0.5")]
)
def test_labels_that_are_no_classes(y, match):
    items = [{"x": torch.zeros(1, 4), "y": torch.tensor(value)} for value in y]
    with pytest.raises(DataError, match=match):
        S.describe(items, "timeseries")
