"""Make ever larger graphs in a process of its own; print for each the nodes, edges, CPU seconds and peak MiB so far."""

import json
import resource
import sys
import time

import torch

import lightning_synth as ls
from lightning_synth.schema import describe


def make(name, num_nodes):
    """Return a generator of graphs of ``num_nodes`` nodes and three times as many edges."""
    given = {
        "erdos_renyi": {"p": 6 / (num_nodes - 1)},
        "barabasi_albert": {"m": 3},
        "watts_strogatz": {"k": 6, "p": 0.1},
        "random_geometric": {"radius": (6.02 / 3.14159 / num_nodes) ** 0.5},
        "configuration_model": {"mean_degree": 6.03, "exponent": 2.5},
        "chung_lu": {"mean_degree": 6.03, "exponent": 2.5},
        "rmat": {"mean_degree": 6.0, "quadrants": [0.57, 0.19, 0.19, 0.05]},
    }
    if name in given:
        return ls.get_generator(name)(num_nodes=num_nodes, **given[name])
    if name == "dk_rewiring":
        items = make("chung_lu", num_nodes).sample(1).items()
        return ls.get_generator(name)().fit_on(items, describe(items, "graph"))
    # A small graph to learn from: four blocks, hubs and triangles.
    points = ls.get_generator("random_geometric")(num_nodes=500, radius=0.045).sample(1).items()[0]
    hubs = ls.get_generator("barabasi_albert")(num_nodes=500, m=2).sample(1).items()[0]
    points.edge_index = torch.cat([points.edge_index, hubs.edge_index], 1).unique(dim=1)
    blocks = {"num_blocks": 20} if name in ("sbm", "dcsbm") else {}
    return ls.get_generator(name)(num_nodes=num_nodes, **blocks).fit_on([points], describe([points], "graph"))


def measure(name, num_nodes):
    """Sample one graph."""
    generator = make(name, num_nodes)
    start = time.process_time()
    graph = generator.sample(1, seed=1).items()[0]
    spent = time.process_time() - start
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"nodes": graph.num_nodes, "edges": graph.num_edges // 2, "seconds": spent, "mib": mib}


if __name__ == "__main__":
    torch.set_num_threads(1)
    # The first and smallest one only fills caches.
    print(json.dumps([measure(sys.argv[1], int(size)) for size in (1000, *sys.argv[2:])]))
