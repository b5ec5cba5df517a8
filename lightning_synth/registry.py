"""Which generators exist: light descriptions now, heavy imports only on demand.

Installed packages announce generators through the entry-point group ``lightning_synth.generators``. The value of an
entry point is one `GeneratorSpec`, or a tuple of them, in a module that is light to import.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from lightning_synth.errors import ConfigError, MissingExtraError, UnknownGeneratorError

if TYPE_CHECKING:
    from lightning_synth.generator import Generator

GROUP = "lightning_synth.generators"
DOMAINS = ("timeseries", "graph", "node", "molecule", "sequence")


@dataclass(frozen=True)
class GeneratorSpec:
    """What is known of a generator without importing it.

    Args:
        name: Lower snake case, unique over all installed packages.
        target: Where the class lives, ``"package.module:Class"``.
        domain: One of ``timeseries graph node molecule sequence``, or ``any``.
        summary: One line on what it does.
        reference: DOI, arXiv id or book the method comes from.
        conditions: Names it can be conditioned on, e.g. ``("label", "rpm")``.
        requires: Modules that must be importable.
        extra: Extra of the distribution that installs them.
        tiny: Hyper-parameters that make it fit in a second, for tests.
        expected_failures: Conformance check name to the reason why it must fail.
        floor: True for trivial generators printed beside every metric.
        baseline: True for generators that every study has as an arm.

    Example:
        >>> spec = GeneratorSpec("toy", "toy_package:Toy", "graph", "A toy.", "none", requires=("toy_package",))
        >>> spec.missing()
        ['toy_package']
    """

    name: str
    target: str
    domain: str
    summary: str
    reference: str
    conditions: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    extra: str | None = None
    tiny: Mapping[str, Any] = field(default_factory=dict)
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    floor: bool = False
    baseline: bool = False

    def __post_init__(self) -> None:
        """Refuse names and domains that could not be used."""
        if not self.name.isidentifier() or self.name != self.name.lower():
            raise ConfigError(f"generator name {self.name!r} must be lower snake case")
        if self.domain not in (*DOMAINS, "any"):
            raise ConfigError(f"generator {self.name!r}: domain {self.domain!r} is not one of {(*DOMAINS, 'any')}")
        if ":" not in self.target:
            raise ConfigError(f"generator {self.name!r}: target {self.target!r} must read 'package.module:Class'")

    def covers(self, domain: str | None) -> bool:
        """Whether it generates items of ``domain`` (None: any)."""
        return domain is None or self.domain in (domain, "any")

    def missing(self) -> list[str]:
        """Return the required modules that are not installed."""
        return [name for name in self.requires if importlib.util.find_spec(name) is None]

    def load(self) -> type[Generator]:
        """Import the class.

        Returns:
            The generator class.

        Raises:
            MissingExtraError: If a required package is not installed.
        """
        missing = self.missing()
        if missing:
            remedy = (
                f"pip install 'lightning-synth[{self.extra}]'" if self.extra else f"pip install {' '.join(missing)}"
            )
            raise MissingExtraError(f"generator {self.name!r} needs {', '.join(missing)}: {remedy}")
        module, _, attribute = self.target.partition(":")
        cls: type[Generator] = getattr(importlib.import_module(module), attribute)
        return cls


_registered: dict[str, GeneratorSpec] = {}
_installed: dict[str, GeneratorSpec] | None = None


def _specs_of(entry: EntryPoint) -> tuple[GeneratorSpec, ...]:
    value = entry.load()
    specs = (value,) if isinstance(value, GeneratorSpec) else tuple(value)
    for spec in specs:
        if not isinstance(spec, GeneratorSpec):
            raise ConfigError(
                f"entry point {entry.name} = {entry.value} holds {type(spec).__name__}, not a GeneratorSpec"
            )
    return specs


def _collect(entries: Iterable[EntryPoint]) -> dict[str, GeneratorSpec]:
    specs: dict[str, GeneratorSpec] = {}
    for entry in entries:
        try:
            found = _specs_of(entry)
        except (ImportError, AttributeError) as error:
            # One broken package must neither hide the others nor stay silent.
            warnings.warn(f"generators of {entry.name} = {entry.value} cannot be listed: {error}", stacklevel=4)
            continue
        for spec in found:
            _add(specs, spec)
    return specs


def _add(specs: dict[str, GeneratorSpec], spec: GeneratorSpec) -> None:
    other = specs.get(spec.name)
    if other is not None and other != spec:
        raise ConfigError(f"two providers of generator {spec.name!r}: {other.target} and {spec.target}; rename one")
    specs[spec.name] = spec


def _all() -> dict[str, GeneratorSpec]:
    global _installed
    if _installed is None:
        _installed = _collect(entry_points(group=GROUP))
    specs = dict(_installed)
    for spec in _registered.values():
        _add(specs, spec)
    return specs


def lazy_classes(specs: Iterable[GeneratorSpec]) -> Callable[[str], Any]:
    """Make a module ``__getattr__`` (PEP 562) that imports a generator class on first use.

    Args:
        specs: Of the module.

    Returns:
        So that ``class_path: lightning_synth.plugins.timeseries.FaultDiffusion`` works in a configuration file.
    """
    by_class = {spec.target.partition(":")[2]: spec for spec in specs}

    def load(name: str) -> Any:
        if name not in by_class:
            raise AttributeError(f"no generator class {name!r}; there are {', '.join(sorted(by_class))}")
        return by_class[name].load()

    return load


def register(spec: GeneratorSpec) -> None:
    """Add a generator for the life of this process, e.g. from a notebook.

    Args:
        spec: Its description.

    Raises:
        ConfigError: If another provider already has the name.
    """
    _add(_all(), spec)
    _registered[spec.name] = spec


def list_generators(domain: str | None = None, available: bool | None = None) -> list[str]:
    """List the names of registered generators, sorted.

    Args:
        domain: Only those for ``timeseries graph node molecule sequence``; None for all.
        available: True for those whose packages are installed, False for the others, None for both.

    Returns:
        Names for `get_generator`.

    Raises:
        ConfigError: If ``domain`` is unknown.

    Example:
        >>> "bootstrap" in list_generators("graph")
        True
    """
    if domain is not None and domain not in DOMAINS:
        raise ConfigError(f"domain {domain!r} is not one of {DOMAINS}")
    chosen = (spec for spec in _all().values() if spec.covers(domain))
    return sorted(spec.name for spec in chosen if available is None or available != bool(spec.missing()))


def get_spec(name: str) -> GeneratorSpec:
    """Return the description of a generator.

    Args:
        name: A name of `list_generators`.

    Raises:
        UnknownGeneratorError: If there is none; the message has the nearest names.
    """
    specs = _all()
    if name not in specs:
        near = difflib.get_close_matches(name, specs, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(specs))}"
        raise UnknownGeneratorError(f"no generator {name!r}; {hint}")
    return specs[name]


def get_generator(name: str) -> type[Generator]:
    """Import and return a generator class by name.

    Args:
        name: A name of `list_generators`.

    Returns:
        A subclass of `Generator`.

    Raises:
        UnknownGeneratorError: If there is none of that name.
        MissingExtraError: If its packages are not installed; the message names the extra.

    Example:
        >>> get_generator("bootstrap").__name__
        'Bootstrap'
    """
    return get_spec(name).load()
