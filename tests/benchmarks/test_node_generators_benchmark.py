"""Generators of nodes on graphs of up to 200,000 nodes and 2,000,000 edges: time over edges, and memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch_geometric")

SCRIPT = Path(__file__).with_name("node_generators_script.py")
NAMES = ("node_oversample", "graph_smote", "graph_ens", "graph_sha", "node_mixup", "gaug")
#: MiB of the whole process at the largest graph: features alone are 98 MiB, and a dense matrix of nodes 150 GiB.
MEMORY = 8192


@pytest.mark.benchmark
@pytest.mark.parametrize("name", NAMES)
def test_time_is_linear_in_edges_and_memory_is_bounded(name: str, run_script) -> None:
    done = run_script(SCRIPT, name, 20_000, 200_000)
    assert done.returncode == 0, done.stderr[-2000:]
    small, large = (json.loads(line) for line in done.stdout.splitlines())
    # Ten times the nodes and edges; what is more than linear by a factor of three, or leaves the caches, fails.
    for part in ("fit", "sample"):
        ratio = large[part] / max(small[part], 1e-3)
        print(f"{name}: {part} {small[part]:.2f} s, {large[part]:.2f} s, {ratio:.1f} times; {large['mib']} MiB")
        assert ratio < 30
    assert large["mib"] < MEMORY
    assert large["edges"] > 1_950_000
