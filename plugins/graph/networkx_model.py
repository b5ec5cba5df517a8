"""Any generator function of NetworkX as a generator of this library."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.generator import known_hparams
from lightning_synth.plugins.graph.classical import ClassicalGenerator
from lightning_synth.requests import KeyedRNG

#: What a parameter can be in a training graph.
_STATISTICS: dict[str, Callable[[int, int], float]] = {
    "num_nodes": lambda n, m: n,
    "num_edges": lambda n, m: m,
    "density": lambda n, m: 2 * m / max(n * (n - 1), 1),
    "mean_degree": lambda n, m: round(2 * m / n),
    "half_degree": lambda n, m: max(round(m / n), 1),
}
#: Parameters that are not given, where what they mean is known.
_FITTED = {
    "n": "num_nodes",
    "gnm_random_graph.m": "num_edges",
    "dense_gnm_random_graph.m": "num_edges",
    "gnp_random_graph.p": "density",
    "fast_gnp_random_graph.p": "density",
    "barabasi_albert_graph.m": "half_degree",
}


class NetworkXModel(ClassicalGenerator):
    """Graphs from a generator function of NetworkX, called once for every row with a seed of its own.

    Parameters of the function are keyword arguments here. One that is not given is taken from a training graph, if it
    is called ``n`` or its meaning is known. A string asks for a statistic of the training graph by name:
    ``num_nodes``, ``num_edges``, ``density``, ``mean_degree`` (rounded) or ``half_degree`` (rounded, at least 1: what
    a new node brings). Directions, loops and repeated edges are dropped. Python draws the graphs one by one; the other
    classical generators are far faster. Hagberg, Schult & Swart 2008, https://networkx.org.

    Args:
        function: Name of a function of ``networkx.generators``.
        parameters: Of the function, as a dict; the same as keyword arguments.
        **kwargs: Parameters of the function, and those of every generator (``lr``, ``seed``, ``schema``: the seeds of
            the rows take the place of NetworkX's ``seed``).

    Raises:
        ConfigError: If the function is unknown, lacks a parameter, or refuses its parameters.
        TypeError: If the function has no parameter of a given name.

    Example:
        >>> from lightning_synth.testing import tiny_graphs, tiny_schema
        >>> model = NetworkXModel("watts_strogatz_graph", k=4, p=0.1).fit_on(tiny_graphs(16), tiny_schema("graph"))
        >>> model.sample(3).data.num_graphs
        3
    """

    resizable = False

    def __init__(
        self, function: str = "gnm_random_graph", *, parameters: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        own = known_hparams(type(self)) or {}
        given = {**(parameters or {}), **{name: kwargs.pop(name) for name in list(kwargs) if name not in own}}
        _check(function, given, own)
        super().__init__(function=function, parameters=given, **kwargs)

    @property
    def is_specified(self) -> bool:
        """Whether no parameter comes from training graphs."""
        return not any(value in _STATISTICS for value in self._all_parameters().values() if isinstance(value, str))

    def _all_parameters(self) -> dict[str, Any]:
        """Given parameters, and names of statistics for the required ones that are not."""
        return _with_statistics(self.hparams.function, self.hparams.parameters)

    def draw_graphs(self, source: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor, Tensor]:
        """Call the function for every row."""
        parameters = self._all_parameters()
        graphs = []
        for index, seed in zip(source.tolist(), rng.integers(1 << 31).tolist(), strict=True):
            values = {name: self._value(value, index) for name, value in parameters.items()}
            graphs.append(call(self.hparams.function, values, seed))
        num_nodes = torch.tensor([nodes for nodes, _ in graphs], dtype=torch.int64)
        count = torch.tensor([edges.shape[1] for _, edges in graphs], dtype=torch.int64)
        edges = torch.cat([source.new_zeros((2, 0)).cpu(), *(edges for _, edges in graphs)], 1)
        row = torch.arange(len(graphs)).repeat_interleave(count)
        return num_nodes.to(rng.device), edges.to(rng.device), row.to(rng.device)

    def _value(self, value: Any, index: int) -> Any:
        if not isinstance(value, str) or value not in _STATISTICS:
            return value
        return _STATISTICS[value](int(self.tables["num_nodes"][index]), int(self.tables["num_edges"][index]))


def call(function: str, parameters: Mapping[str, Any], seed: int) -> tuple[int, Tensor]:
    """Call a generator function of NetworkX.

    Args:
        function: Its name.
        parameters: Its parameters.
        seed: For its ``seed``, if it has one.

    Returns:
        Number of nodes, and edges (2, edges) by the position of their nodes.

    Raises:
        ConfigError: If the function refuses, or returns an empty graph.

    Example:
        >>> call("path_graph", {"n": 3}, seed=0)[1].tolist()
        [[0, 1], [1, 2]]
    """
    import networkx as nx

    target = find_function(function)
    seeded = {"seed": seed} if "seed" in inspect.signature(target).parameters else {}
    asked = f"{function}({', '.join(f'{name}={value!r}' for name, value in parameters.items())})"
    try:
        graph = target(**parameters, **seeded)
    except (nx.NetworkXException, ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise ConfigError(f"networkx refuses {asked}: {error}") from error
    if not isinstance(graph, nx.Graph) or not len(graph):
        raise ConfigError(f"networkx gives no graph with nodes for {asked}")
    place = {node: i for i, node in enumerate(graph)}
    edges = [(place[u], place[v]) for u, v in graph.edges()]
    return len(place), torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T


def find_function(name: str) -> Callable[..., Any]:
    """Return a generator function of NetworkX.

    Args:
        name: As in ``networkx``.

    Raises:
        ConfigError: If there is none of that name.
    """
    import networkx as nx

    target = getattr(nx, name, None)
    if callable(target) and str(getattr(target, "__module__", "")).startswith("networkx.generators"):
        found: Callable[..., Any] = target
        return found
    known = [other for other in dir(nx) if other.endswith(("_graph", "_tree", "_model"))]
    near = difflib.get_close_matches(name, known, n=1)
    raise ConfigError(f"networkx has no generator function {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _with_statistics(function: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Add names of statistics for required parameters that are not given."""
    values = dict(given)
    for name, parameter in inspect.signature(find_function(function)).parameters.items():
        if name not in values and parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            statistic = _FITTED.get(f"{function}.{name}", _FITTED.get(name))
            if statistic is None:
                raise ConfigError(
                    f"{function} needs {name!r}: give a value, or the statistic of training graphs that it is: "
                    f"{', '.join(_STATISTICS)}"
                )
            values[name] = statistic
    return values


def _check(function: str, given: Mapping[str, Any], own: Iterable[str]) -> None:
    """Refuse unknown parameters, unknown statistics, and missing parameters."""
    known = inspect.signature(find_function(function)).parameters
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *own], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(known)}"
            raise TypeError(f"{function} has no argument {name!r}{hint}")
        if isinstance(value, str) and value not in _STATISTICS and not isinstance(known[name].default, str):
            raise ConfigError(f"{name} = {value!r} is no statistic of training graphs: {', '.join(_STATISTICS)}")
    _with_statistics(function, given)


__all__ = ["NetworkXModel", "call", "find_function"]
