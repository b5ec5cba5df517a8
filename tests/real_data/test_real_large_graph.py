"""One large graph: a short fit to the political blogs keeps degrees and some clustering, and repeats few edges."""

import networkx as nx
import numpy as np
import pytest

from lightning_synth.datamodules import LargeGraphDataModule
from lightning_synth.networkx import to_networkx
from lightning_synth.plugins.graph.cell import CELL
from lightning_synth.plugins.graph.graph_maker import GraphMaker
from lightning_synth.plugins.graph.vgae import VGAE
from lightning_synth.testing.case import quiet_trainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def statistics(graph):
    degree = np.sort([degree for _, degree in graph.degree])
    rank = 2 * np.arange(1, len(degree) + 1) - len(degree) - 1
    return {
        "edges": graph.number_of_edges(),
        "gini": float(rank @ degree / (len(degree) * degree.sum())),
        "largest degree": int(degree.max()),
        "assortativity": nx.degree_assortativity_coefficient(graph),
        "clustering": nx.average_clustering(graph),
    }


@pytest.mark.parametrize(
    ("make", "steps", "overlap", "clustering", "auc"),
    [
        (lambda: CELL(target_overlap=0.3), 100, (0.25, 0.5), 0.15, 0.93),
        (VGAE, 300, (0.1, 0.45), 0.12, 0.9),
        (GraphMaker, 300, (0.05, 0.25), 0.08, None),
    ],
    ids=["cell", "vgae", "graph_maker"],
)
def test_polblogs(data_root, make, steps, overlap, clustering, auc):
    data = LargeGraphDataModule(data_root / "graphs" / "polblogs.npz", hold_out=(0.0, 0.05))
    model = make()
    quiet_trainer(max_steps=steps).fit(model, datamodule=data)
    assert overlap[0] < float(model.edge_overlap) < overlap[1] and float(model.chance_overlap) < 0.03
    real, fake = (statistics(to_networkx(items)[0]) for items in (data.train_items(), model.sample(1, seed=0).items()))
    assert fake["edges"] == pytest.approx(real["edges"], rel=0.03)
    assert fake["gini"] == pytest.approx(real["gini"], abs=0.06)
    assert fake["largest degree"] == pytest.approx(real["largest degree"], rel=0.35)
    assert fake["assortativity"] < 0 and fake["clustering"] > clustering
    if auc is not None:
        found, absent = (model.link_scores(pairs).numpy() for pairs in data.held_out_edges())
        assert (found[:, None] > absent).mean() > auc


def test_cora_attributes_follow_the_node_labels(data_root):
    from sklearn.linear_model import LogisticRegression

    data = LargeGraphDataModule(data_root / "graphs" / "cora_planetoid.npz")
    real = data.train_items()[0]
    model = GraphMaker(bins=2)
    quiet_trainer(max_steps=80).fit(model, datamodule=data)
    fake = model.sample(1, seed=0).items()[0]
    row, col = fake.edge_index
    assert float((fake.y[row] == fake.y[col]).float().mean()) > 0.6 and float(model.edge_overlap) < 0.1
    assert float(fake.x.mean()) == pytest.approx(float(real.x.mean()), rel=0.35)
    # A classifier trained on synthetic features alone knows real ones.
    classifier = LogisticRegression(max_iter=200).fit(fake.x.numpy(), fake.y.numpy())
    assert classifier.score(real.x.numpy(), real.y.numpy()) > 0.65
