"""Nothing that training sees may depend on validation or test items: they are permuted, and no bit may change."""

import pytest
import torch

from lightning_synth.datamodules import InteractionDataModule
from lightning_synth.datamodules.simulated_interactions import SimulatedInteractions
from lightning_synth.sequences import OPERATORS, PairSampler, Substitute, TwoViews, similar_items


def logs():
    """A log, and one in which users have exchanged their last two items."""
    sequences = SimulatedInteractions(80, 50, min_length=4, mean_length=10, seed=2).sequences()
    lists = [item["item_id"].tolist() for item in sequences]
    order = torch.randperm(len(lists), generator=torch.Generator().manual_seed(0)).tolist()
    return lists, [own[:-2] + lists[other][-2:] for own, other in zip(lists, order, strict=True)]


def training_batches(source, epochs=2, **options):
    data = InteractionDataModule(source, batch_size=32, max_length=12, seed=5, vocab_size=50, **options)
    loader = data.train_dataloader()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        yield from loader


@pytest.mark.parametrize(
    "options",
    [
        {},
        *({"augment": [name], "augment_prob": 0.7} for name in OPERATORS),
        {"augment": [TwoViews()]},
        {"sampler": PairSampler(1.5, 1.0, 1.0)},
        {"sampler": PairSampler(), "augment": ["substitute", "insert"]},
    ],
    ids=str,
)
def test_batches_do_not_depend_on_held_out_items(options):
    one, two = logs()
    assert one != two
    pairs = list(zip(training_batches(one, **options), training_batches(two, **options), strict=True))
    assert len(pairs) == 6
    for first, second in pairs:
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_schema_does_not_depend_on_held_out_items():
    one, two = (InteractionDataModule(log, vocab_size=50) for log in logs())
    assert one.schema == two.schema
    assert [i["item_id"].tolist() for i in one.test_items()] != [i["item_id"].tolist() for i in two.test_items()]


def test_the_test_can_fail():
    """An operator fitted on test sequences is found out."""
    batches = []
    for log in logs():
        test = InteractionDataModule(log, vocab_size=50).test_items()
        operator = Substitute(similar=similar_items(test, vocab_size=50))
        batches.append(next(training_batches(log, augment=[operator], augment_prob=1.0))["item_id"])
    assert not torch.equal(*batches)
