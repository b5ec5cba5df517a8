"""Fit and sample a generator of nodes on large graphs; prints seconds of CPU time and peak memory as JSON lines."""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from typing import Any

import torch

from lightning_synth.datamodules.base import ItemsDataModule
from lightning_synth.generator import FitFreeGenerator
from lightning_synth.registry import get_generator
from lightning_synth.testing.case import quiet, quiet_trainer


def make(nodes: int) -> Any:
    """A graph with hubs, ten edges a node, 128 features and ten classes, three of them rare."""
    draw = torch.Generator().manual_seed(0)
    graph = get_generator("chung_lu")(num_nodes=nodes, mean_degree=20.1, exponent=2.5).sample(1).items()[0]
    graph.y, part = torch.randint(10, (nodes,), generator=draw), torch.rand(nodes, generator=draw)
    rare = (graph.y >= 7) & (torch.rand(nodes, generator=draw) > 0.1)
    graph.train_mask, graph.val_mask, graph.test_mask = (part < 0.1) & ~rare, (part >= 0.1) & (part < 0.2), part >= 0.8
    graph.x = torch.randn(nodes, 128, generator=draw)
    return graph


def spent(task: Any) -> tuple[float, Any]:
    start = time.process_time()
    result = task()
    return time.process_time() - start, result


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    name, sizes = sys.argv[1], [int(size) for size in sys.argv[2:]]
    for nodes in sizes:
        graph = make(nodes)
        data = ItemsDataModule([graph], domain="node", batch_size=1)
        generator, loader = get_generator(name)(), data.train_dataloader()
        with quiet():
            if isinstance(generator, FitFreeGenerator):
                fit, _ = spent(lambda g=generator, d=data: g.fit_on(d.train_items(), d.schema))
            else:
                fit, _ = spent(lambda g=generator, d=loader: quiet_trainer(max_steps=3).fit(g, d))
        sample, samples = spent(lambda g=generator: g.sample(1))
        grown = samples.items()[0]
        assert grown.num_nodes > nodes or name == "gaug"
        mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(json.dumps({"fit": fit, "sample": sample, "mib": mib, "edges": graph.num_edges // 2}), flush=True)


if __name__ == "__main__":
    main()
