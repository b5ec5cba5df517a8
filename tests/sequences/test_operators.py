"""Operators do what they say, row by row, and leave the target alone."""

from itertools import pairwise

import pytest
import torch

from lightning_synth.datamodules import AugmentedDataModule, InteractionDataModule
from lightning_synth.errors import ConfigError, NotFittedError
from lightning_synth.requests import KeyedRNG
from lightning_synth.sequences import OPERATORS, Augmentation, SequenceItems, TwoViews, similar_items
from lightning_synth.sequences.augmentation import make_operators
from lightning_synth.sequences.batches import compact
from lightning_synth.sequences.operators import Insert, Mask, RepPad, SlidingWindow, Substitute
from lightning_synth.testing import tiny_datamodule, tiny_sequences

LENGTH, VOCAB = 16, 40
#: Similar to item i is item 40 - i, and to 20 nothing.
SIMILAR = torch.tensor([0, *(VOCAB - i if i != 20 else 0 for i in range(1, VOCAB)), 0])[:, None]


def batch_of(lists, length=LENGTH):
    return SequenceItems.from_lists(lists).padded(length)


def random_batch(rows=200, seed=0):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LENGTH + 1, (rows,), generator=draw).tolist()
    return batch_of([(torch.randperm(VOCAB, generator=draw)[:n] + 1).tolist() for n in lengths])


def rng(rows, seed=0):
    return KeyedRNG(torch.arange(rows) + 1000 * seed)


def made(name, **options):
    if name in ("insert", "substitute"):
        options["similar"] = SIMILAR
    return OPERATORS[name](**options)


def rows_of(batch):
    return [ids[mask].tolist() for ids, mask in zip(batch["item_id"], batch["padding_mask"], strict=True)]


def is_subsequence(short, long):
    rest = iter(long)
    return all(any(a == b for b in rest) for a in short)


def is_part(short, long):
    return any(long[i : i + len(short)] == short for i in range(len(long) - len(short) + 1))


@pytest.mark.parametrize("name", OPERATORS)
def test_form_of_the_batch_is_kept(name):
    batch = random_batch()
    before = {key: value.clone() for key, value in batch.items()}
    after = made(name).augment(batch, rng(200))
    assert all(torch.equal(batch[key], before[key]) for key in batch), "the given batch is not changed"
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        key: (after[key].shape, after[key].dtype) for key in batch
    }
    assert (after["item_id"][~after["padding_mask"]] == 0).all() and (after["item_id"][after["padding_mask"]] > 0).all()
    assert (after["target_weight"][~after["padding_mask"]] == 0).all()
    first = after["padding_mask"] & (after["padding_mask"].cumsum(1) == 1)
    assert (after["target_weight"][first] == 0).all(), "what a row begins with has no context"
    assert (after["item_id"] != batch["item_id"]).any()


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "sliding_window"])
def test_the_target_is_left_alone(name):
    batch = random_batch()
    after = made(name).augment(batch, rng(200))
    for key in ("item_id", "padding_mask"):
        assert torch.equal(after[key][:, -1], batch[key][:, -1])
    long_enough = after["padding_mask"].sum(1) > 1
    assert torch.equal(after["target_weight"][long_enough, -1], batch["target_weight"][long_enough, -1])


@pytest.mark.parametrize("name", OPERATORS)
def test_a_row_depends_on_its_seed_alone(name):
    batch, seeds = random_batch(), torch.arange(200)
    whole = made(name).augment(batch, KeyedRNG(seeds))
    for rows in (slice(0, 1), slice(150, 157)):
        part = made(name).augment({key: value[rows] for key, value in batch.items()}, KeyedRNG(seeds[rows]))
        assert all(torch.equal(part[key], whole[key][rows]) for key in part)
    other = made(name).augment(batch, KeyedRNG(seeds + 500))
    assert (other["item_id"] != whole["item_id"]).any()


@pytest.mark.parametrize("name", OPERATORS)
def test_the_shortest_rows_survive(name):
    after = made(name).augment(batch_of([[1], [2, 3]]), rng(2))
    assert after["padding_mask"].any(1).all() and after["item_id"][:, -1].tolist() == [1, 3]


def test_crop_keeps_a_contiguous_part_of_the_context():
    batch = random_batch()
    after = made("crop", ratio=0.5).augment(batch, rng(200))
    for old, new in zip(rows_of(batch), rows_of(after), strict=True):
        kept = max(1, (len(old) - 1) // 2) if len(old) > 1 else 0
        assert new[-1] == old[-1] and len(new) == kept + 1 and is_part(new[:-1], old[:-1])


def test_crop_of_whole_rows_starts_anywhere():
    batch = batch_of([list(range(1, 11))] * 500)
    starts = torch.tensor(
        [row[0] for row in rows_of(made("crop", ratio=0.4, keep_target=False).augment(batch, rng(500)))]
    )
    counts = torch.bincount(starts)[1:]
    assert len(counts) == 7 and counts.min() > 40, "windows of 4 of 10 items start at 7 places"


def test_mask_hides_a_share_of_the_context():
    batch = random_batch()
    after = made("mask", ratio=0.3).augment(batch, rng(200))
    hidden = batch["padding_mask"] & ~after["padding_mask"]
    size = batch["padding_mask"].sum(1) - 1
    assert torch.equal(hidden.sum(1), torch.tensor([int(0.3 * n + 1e-6) for n in size.tolist()]))
    shown = after["padding_mask"]
    assert torch.equal(after["item_id"][shown], batch["item_id"][shown])
    token = Mask(0.3, token=VOCAB + 1).augment(batch, rng(200))
    assert torch.equal(token["padding_mask"], batch["padding_mask"])
    assert torch.equal(token["item_id"] == VOCAB + 1, hidden) and token["item_is_synthetic"][hidden].all()


def test_reorder_shuffles_a_window():
    batch = batch_of([list(range(1, 13))] * 300)
    after = made("reorder", ratio=0.5).augment(batch, rng(300))
    moved = 0
    for new in rows_of(after):
        assert sorted(new) == list(range(1, 13))
        places = [i for i, item in enumerate(new) if item != i + 1]
        moved += bool(places)
        assert not places or places[-1] - places[0] < 5, "half of 11 items, rounded down"
    assert moved > 280


def test_insert_puts_a_similar_item_before():
    batch = batch_of([[1, 2, 3, 4, 5]] * 100)
    after = made("insert", ratio=0.5).augment(batch, rng(100))
    for row in rows_of(after):
        new = [i for i, item in enumerate(row) if item > 30]
        assert len(new) == 2 and all(row[i] + row[i + 1] == VOCAB for i in new) and row[-1] == 5
        assert [item for item in row if item < 30] == [1, 2, 3, 4, 5]
    assert torch.equal(after["item_is_synthetic"], after["item_id"] > 30)
    assert (after["target_weight"][after["item_id"] > 30] == 0).all()


def test_insert_into_a_full_row_drops_the_oldest():
    batch = batch_of([[1, 2, 3, 4]], length=4)
    row = rows_of(made("insert", ratio=1.0).augment(batch, rng(1)))[0]
    assert row == [2, 37, 3, 4] or row == [38, 2, 37, 3, 4][-4:]


def test_substitute_replaces_by_a_similar_item():
    batch = batch_of([[1, 2, 20, 4, 5]] * 100)
    after = made("substitute", ratio=1.0).augment(batch, rng(100))
    assert rows_of(after)[0] == [39, 38, 20, 36, 5], "nothing is similar to 20, and 5 is the target"
    few = made("substitute", ratio=0.1).augment(batch, rng(100))
    assert (few["item_id"] != batch["item_id"]).sum(1).eq(1).all(), "at least one"


def test_similar_items_are_drawn_from_those_there_are():
    similar = torch.tensor([[0, 0], [5, 0], [6, 7]])
    after = Substitute(1.0, similar=similar).augment(batch_of([[1, 2, 1]] * 100), rng(100))
    found = torch.tensor(rows_of(after))
    assert found[:, 0].unique().tolist() == [5] and found[:, 1].unique().tolist() == [6, 7]


def test_delete_and_subset_split_keep_the_order():
    batch = random_batch()
    for name in ("delete", "subset_split"):
        for old, new in zip(rows_of(batch), rows_of(made(name).augment(batch, rng(200))), strict=True):
            assert is_subsequence(new, old) and new[-1] == old[-1] and len(new) >= min(2, len(old))
    sizes = [
        (len(a), len(b))
        for a, b in zip(rows_of(batch), rows_of(made("delete", ratio=0.5).augment(batch, rng(200))), strict=True)
    ]
    assert all(new == old - min(max(1, (old - 1) // 2), max(old - 2, 0)) for old, new in sizes)


def test_subset_split_removes_with_its_probability():
    batch = batch_of([list(range(1, 17))] * 1000)
    left = made("subset_split", prob=0.25).augment(batch, rng(1000))["padding_mask"].float().mean(0).sum()
    # 14 of 16 positions may go: the target and the item before it stay.
    assert float(left) == pytest.approx(2 + 14 * 0.75, abs=0.25)


def test_a_sliding_window_has_a_target_of_its_own():
    batch = batch_of([list(range(1, 11))] * 500)
    after = SlidingWindow(4).augment(batch, rng(500))
    found = rows_of(after)
    assert {tuple(row) for row in found} == {tuple(range(i, i + 4)) for i in range(1, 8)}
    assert after["target_weight"][:, -1].eq(1).all()
    pairs = batch | {"target_weight": torch.zeros(500, LENGTH).index_fill_(1, torch.tensor([LENGTH - 1]), 1.0)}
    assert SlidingWindow(4).augment(pairs, rng(500))["target_weight"].sum(1).eq(1).all()


def test_rep_pad_fills_with_copies():
    batch = batch_of([[7, 8, 9]] * 200)
    after = RepPad().augment(batch, rng(200))
    sizes = set()
    for row, weight in zip(after["item_id"].tolist(), after["target_weight"], strict=True):
        kept = [item for item in row if item]
        sizes.add(len(kept))
        assert kept == ([7, 8, 9] * 6)[-len(kept) :]
        assert not weight[torch.tensor(row) == 7].any(), "the first item of a copy does not follow from the last one"
    assert sizes == {6, 9, 12, 15, 16}, "1 to floor(16 / 3) = 5 copies more"
    holes = RepPad(delimiter=True).augment(batch, rng(200))["item_id"]
    assert set(holes[:, -5].tolist()) == {9} and set(holes[:, -4].tolist()) == {0}


def test_holes_are_closed_before_copies_are_made():
    batch = batch_of([[1, 2, 3, 4]])
    batch["padding_mask"][0, -2], batch["item_id"][0, -2] = False, 0
    after = RepPad().augment(batch, rng(1))
    kept = after["item_id"][after["padding_mask"]].tolist()
    assert kept == ([1, 2, 4] * 6)[-len(kept) :]


def test_compact_cuts_from_the_left():
    batch = batch_of([[1, 2, 3, 4]], length=4)
    found = compact(batch, torch.tensor([[True, True, False, True]]), 2)
    assert found["item_id"].tolist() == [[2, 4]] and found["padding_mask"].tolist() == [[True, True]]


# ------------------------------------------------------------------------------------------------------------ wrappers


def test_two_views_differ_and_keep_the_rows():
    batch = random_batch()
    first, second = TwoViews().views(batch, rng(200))
    assert (first["item_id"] != second["item_id"]).any(1).float().mean() > 0.5
    for row, a, b in zip(rows_of(batch), rows_of(first), rows_of(second), strict=True):
        assert set(a) <= set(row) and set(b) <= set(row) and a and b
    added = TwoViews().augment(batch, rng(200))
    assert torch.equal(added["item_id"], batch["item_id"]) and torch.equal(added["view1_item_id"], first["item_id"])


def test_every_operator_makes_views():
    batch = batch_of([list(range(1, 11))] * 300)
    view, _ = TwoViews(["crop", "mask"]).views(batch, rng(300))
    holes = (~view["padding_mask"] & (view["padding_mask"].cumsum(1) > 0)).any(1)
    assert 0.35 < float(holes.float().mean()) < 0.65


def test_probability_of_acting():
    batch = batch_of([list(range(1, 11))] * 2000)
    never, half = (Augmentation(["delete"], prob, seed=1)(batch, torch.arange(2000)) for prob in (0.0, 0.5))
    assert torch.equal(never["item_id"], batch["item_id"])
    changed = (half["item_id"] != batch["item_id"]).any(1).float().mean()
    assert float(changed) == pytest.approx(0.5, abs=0.05)
    synthetic = Augmentation(["delete"], 1.0)(batch, torch.full((2000,), -1))
    assert torch.equal(synthetic["item_id"], batch["item_id"]), "rows without a number are left alone"


def test_views_of_rows_that_are_left_alone_are_the_rows():
    batch = batch_of([[1, 2, 3, 4]] * 4)
    done = Augmentation([TwoViews()], 0.0)(batch, torch.arange(4))
    assert torch.equal(done["view1_item_id"], batch["item_id"])
    assert torch.equal(done["view2_padding_mask"], batch["padding_mask"])


def test_augmented_datamodule_takes_operators():
    data = InteractionDataModule(tiny_sequences(40, vocab_size=12, max_length=8), batch_size=8)
    augmented = AugmentedDataModule(data, ["crop", {"insert": {"ratio": 0.5}}], prob=1.0)
    batch = next(iter(augmented.train_dataloader()))
    one, two = (augmented.augment_batch(batch, epoch=epoch, start=0) for epoch in (0, 1))
    assert (one["item_id"] != batch["item_id"]).any() and (one["item_id"] != two["item_id"]).any()
    assert torch.equal(one["item_id"], augmented.augment_batch(batch, epoch=0, start=0)["item_id"])
    rows = {key: value[3:5] for key, value in batch.items()}
    assert torch.equal(one["item_id"][3:5], augmented.augment_batch(rows, epoch=0, start=3)["item_id"])


def test_operators_are_for_sequences():
    with pytest.raises(ConfigError, match="Crop augments sequences; the data is of the domain timeseries"):
        AugmentedDataModule(tiny_datamodule("timeseries"), ["crop"]).setup("fit")


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ConfigError, match="operator 'shuffle' is unknown; known: crop, mask"):
        make_operators("shuffle")
    with pytest.raises(ConfigError, match="operator crop: .*unexpected keyword argument 'rate'"):
        make_operators({"crop": {"rate": 0.5}})
    with pytest.raises(ConfigError, match="int is no operator"):
        make_operators([3])
    with pytest.raises(ConfigError, match="ratio must lie in"):
        make_operators({"mask": {"ratio": 1.5}})
    with pytest.raises(ConfigError, match="mask token 99 has no place beside items 1..4"):
        Mask(token=99).fit([], {"vocab_size": 4})
    with pytest.raises(ConfigError, match="prob must be in"):
        Augmentation(["crop"], prob=[0.5, 0.5])
    with pytest.raises(ConfigError, match="length must be at least 2"):
        SlidingWindow(1)
    with pytest.raises(NotFittedError, match="call fit"):
        Insert().augment(batch_of([[1, 2, 3]]), rng(1))


# ---------------------------------------------------------------------------------------------------------- similarity


def test_similarity_is_itemcf_iuf():
    """Against the definition, written out."""
    draw = torch.Generator().manual_seed(1)
    lists = [(torch.randperm(15, generator=draw)[: 2 + i % 6] + 1).tolist() for i in range(60)]
    found = similar_items(SequenceItems.from_lists(lists), vocab_size=15, count=14)
    popularity = [sum(i in row for row in lists) for i in range(16)]
    for i in range(1, 16):
        score = {}
        for j in range(1, 16):
            both = [row for row in lists if i in row and j in row]
            if j != i and both:
                idf = sum(1 / torch.log1p(torch.tensor(float(len(row)))).item() for row in both)
                score[j] = idf / (popularity[i] * popularity[j]) ** 0.5
        got = [j for j in found[i].tolist() if j]
        assert set(got) == set(score)
        assert all(score[a] >= score[b] - 1e-5 for a, b in pairwise(got))


def test_similarity_counts_an_item_once_a_user():
    once, twice = (similar_items(SequenceItems.from_lists([a, [2, 3], [2, 3]]), 3) for a in ([1, 2, 3], [1, 1, 2, 3]))
    assert torch.equal(once, twice)
