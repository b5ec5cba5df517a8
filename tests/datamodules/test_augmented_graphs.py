"""Transforms as augmenters of a DataModule of graphs: positions, probabilities, soft labels, mixtures, views."""

import pytest
import torch

pytest.importorskip("torch_geometric")
from lightning.pytorch import LightningModule, Trainer
from torch_geometric.data import Batch
from torch_geometric.transforms import Compose, ToUndirected

import lightning_synth as ls
from lightning_synth.datamodules import AugmentedDataModule, ItemsDataModule, MixedDataModule, NodeDataModule
from lightning_synth.downstream import GIN
from lightning_synth.errors import ConfigError, NotFittedError
from lightning_synth.testing import tiny_datamodule, tiny_graphs, tiny_node
from lightning_synth.transforms import DropEdge, FeatureNoise, GMixup, MaskFeature, PairMixup, TwoViews


def with_features(graphs):
    for i, graph in enumerate(graphs):
        graph.x = torch.rand(graph.num_nodes, 3, generator=torch.Generator().manual_seed(i))
    return graphs


def source(batch_size=6, n=18):
    train, val = with_features(tiny_graphs(n)), with_features(tiny_graphs(3, seed=9))
    return ItemsDataModule(train, val, domain="graph", batch_size=batch_size)


def augmented(augment, data=None, **options):
    return AugmentedDataModule(data or source(), augment, **{"prob": 1.0, **options})


def edges(batches):
    return [graph.edge_index.tolist() for batch in batches for graph in batch.to_data_list()]


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen, self.val = torch.nn.Linear(1, 2), [], []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        first = batch[0] if isinstance(batch, list | tuple) else batch
        mean = torch.zeros(first.num_graphs).index_add(0, first.batch, torch.ones(first.num_nodes))
        return torch.nn.functional.cross_entropy(self.layer(mean[:, None]), first.y)

    def validation_step(self, batch, batch_idx):
        self.val.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-9)


def fit(data, trainer_kwargs, epochs=2):
    net = Net()
    Trainer(max_epochs=epochs, **trainer_kwargs).fit(net, data)
    return net


def test_names_options_objects_and_compositions():
    steps = ["DropEdge", {"MaskFeature": {"p": 0.5}}, FeatureNoise(), Compose([DropEdge(0.1), ToUndirected()])]
    data = augmented(steps)
    batch = next(iter(data.train_dataloader()))
    before = batch.clone()
    made = data.augment_batch(batch, epoch=0, start=0)
    assert made.num_graphs == 6 and made.num_edges < batch.num_edges and not torch.equal(made.x, batch.x)
    assert torch.equal(batch.edge_index, before.edge_index) and torch.equal(batch.x, before.x)
    assert torch.equal(made.y, batch.y) and sum(graph.num_edges for graph in made.to_data_list()) == made.num_edges


def test_what_happens_to_a_graph_depends_on_its_position_alone():
    graphs = source().train_items()
    data = augmented([DropEdge(0.4), FeatureNoise()], prob=0.6)
    whole = data.augment_batch(Batch.from_data_list(list(graphs)), epoch=1, start=0)
    parts = [data.augment_batch(Batch.from_data_list(graphs[i : i + 5]), 1, i) for i in range(0, 18, 5)]
    assert edges([whole]) == edges(parts) and torch.equal(whole.x, torch.cat([part.x for part in parts]))
    other = data.augment_batch(Batch.from_data_list(list(graphs)), epoch=2, start=0)
    assert edges([whole]) != edges([other])


def test_probability_and_untouched_validation(trainer_kwargs):
    data = augmented(MaskFeature(1.0, mode="row"), prob=0.5, data=source(n=120))
    net = fit(data, trainer_kwargs, epochs=1)
    masked = [bool((g.x == 0).all()) for batch in net.seen for g in batch.to_data_list()]
    assert 35 < sum(masked) < 85
    assert not any(bool((batch.x == 0).any()) for batch in net.val)


def test_the_trainer_draws_by_epoch_and_position(trainer_kwargs):
    data = augmented(DropEdge(0.5))
    one, two = (fit(data, trainer_kwargs) for _ in range(2))
    assert edges(one.seen) == edges(two.seen)
    loader = data.train_dataloader()
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        made = [data.augment_batch(batch, epoch, 6 * i) for i, batch in enumerate(loader)]
        assert edges(made) == edges(one.seen[3 * epoch : 3 * epoch + 3])


@pytest.mark.parametrize("mixup", [GMixup(), PairMixup()], ids=repr)
@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_mixups_are_fitted_and_make_labels_soft(mixup, prob, trainer_kwargs):
    data = augmented(mixup, prob=prob)
    net = fit(data, trainer_kwargs)
    assert not mixup.is_fitted
    y = torch.cat([batch.y for batch in net.seen])
    assert y.shape == (36, 2) and torch.allclose(y.sum(1), torch.ones(36)) and y.dtype == torch.float32
    hard = (y.max(1).values == 1).float().mean()
    assert hard == 1 if prob == 0 else hard < 1
    assert all(batch.y.dtype == torch.int64 for batch in net.val)


def test_the_reference_model_learns_from_soft_labels(trainer_kwargs):
    model = GIN(hidden=8, num_layers=1)
    Trainer(max_epochs=2, **trainer_kwargs).fit(model, augmented(GMixup()))
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert model.predict(source().val_items()).shape == (3,)


@pytest.mark.parametrize("augment", [DropEdge(0.5), PairMixup()], ids=repr)
def test_mixtures_keep_their_provenance(augment, trainer_kwargs):
    mixed = MixedDataModule(source(), with_features(tiny_graphs(9, seed=5)), ratio=0.5, batch_size=6)
    net = fit(augmented(augment, data=mixed, prob=0.5), trainer_kwargs)
    assert all(batch.is_synthetic.tolist() == [False] * 3 + [True] * 3 for batch in net.seen)
    assert all(len(batch.weight) == batch.num_graphs for batch in net.seen)


def test_two_views(trainer_kwargs):
    net = fit(augmented(TwoViews(DropEdge(0.5))), trainer_kwargs, epochs=1)
    one, other = net.seen[0]
    assert one.num_graphs == other.num_graphs == 6 and edges([one]) != edges([other])
    for data in (augmented(TwoViews(DropEdge()), prob=0.5), augmented([TwoViews(DropEdge()), DropEdge()])):
        with pytest.raises(ConfigError, match="TwoViews must be the last"):
            data.augment_batch(next(iter(data.train_dataloader())), 0, 0)


def test_what_does_not_go_together():
    with pytest.raises(ConfigError, match="domain graph needs PyG transforms"):
        augmented("jitter").setup("fit")
    with pytest.raises(ConfigError, match="domain timeseries needs generators"):
        augmented(DropEdge(), data=tiny_datamodule("timeseries")).setup("fit")
    with pytest.raises(ConfigError, match="mixes labelled graphs"):
        augmented(GMixup(), data=NodeDataModule(tiny_node())).setup("fit")
    with pytest.raises(ConfigError, match="domain is|of the domain molecule"):
        augmented(DropEdge(), data=tiny_datamodule("molecule")).setup("fit")


def test_a_fitted_node_generator_makes_another_graph_in_every_step():
    data = tiny_datamodule("node")
    generator = ls.get_generator("node_oversample")(target=20)
    with pytest.raises(NotFittedError, match="fit it to the data first"):
        augmented([generator], data=data).augment_batch(data.train_items()[0], 0, 0)
    generator.fit_on(data.train_items(), data.schema)
    every_step = augmented([generator], data=data)
    graph = data.train_items()[0]
    first, again, other = (every_step.augment_batch(graph, epoch, 0) for epoch in (0, 0, 1))
    assert int(first.is_synthetic.sum()) > 0 and torch.equal(first.x[: graph.num_nodes], graph.x)
    assert torch.equal(first.x, again.x) and not torch.equal(first.x, other.x)
