"""Transform ever larger graphs in a process of its own; print nodes, CPU seconds and peak MiB so far of each."""

import json
import resource
import sys
import time

import torch

import lightning_synth as ls
from lightning_synth import transforms
from lightning_synth.datamodules.neighbors import NeighborTable

OPTIONS = {
    "MaskFeature": {"mode": "all"},
    "Diffusion": {"tolerance": 1e-3, "top_k": 32},
    "GMixup": {"resolution": 32},
}
NAMES = (
    "DropEdge",
    "AddRandomEdge",
    "PerturbEdge",
    "DropNode",
    "RandomWalkSubgraph",
    "MaskFeature",
    "FeatureNoise",
    "Diffusion",
    "TwoViews",
    "GMixup",
    "PairMixup",
    "NeighborTable",
)


def make_graph(num_nodes, label=0):
    """Return a graph of ``num_nodes`` nodes, ten times as many edges, 16 features and edge weights."""
    model = ls.get_generator("chung_lu")(num_nodes=num_nodes, mean_degree=20.13, exponent=2.5)
    graph = model.sample(1, seed=label).items()[0]
    draw = torch.Generator().manual_seed(0)
    graph.x = torch.rand(graph.num_nodes, 16, generator=draw)
    graph.edge_weight = (graph.edge_index.sum(0) % 7 + 1).float()
    graph.y = torch.tensor([label])
    return graph


def make_task(name, num_nodes):
    """Return a function that transforms one graph of ``num_nodes`` nodes."""
    graph = make_graph(num_nodes)
    if name == "NeighborTable":
        return lambda: NeighborTable(graph).sample(torch.arange(512), [10, 10], seed=0)
    if name == "TwoViews":
        transform = transforms.TwoViews(transforms.DropEdge())
    else:
        transform = getattr(transforms, name)(**OPTIONS.get(name, {}))
    if hasattr(transform, "fit"):
        transform.fit([graph, make_graph(num_nodes, label=1)])
    return lambda: transform(graph, key=1)


def measure(name, num_nodes):
    """Transform one graph."""
    task = make_task(name, num_nodes)
    start = time.process_time()
    task()
    spent = time.process_time() - start
    return {"nodes": num_nodes, "seconds": spent, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


if __name__ == "__main__":
    torch.set_num_threads(1)
    # The first and smallest one only fills caches.
    print(json.dumps([measure(sys.argv[1], int(size)) for size in (1000, *sys.argv[2:])]))
