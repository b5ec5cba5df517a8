"""The conformance suite: every check on every domain of a generator, as a function call or as pytest cases."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lightning_synth.errors import ConfigError
from lightning_synth.generator import Generator
from lightning_synth.registry import DOMAINS, GeneratorSpec, get_spec
from lightning_synth.testing import checks_fit, checks_sample, checks_spec
from lightning_synth.testing.case import Case, Skipped

Check = Callable[[Case], None]
Target = str | GeneratorSpec | type[Generator]

CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        checks_spec.check_spec,
        checks_spec.check_docstring,
        checks_spec.check_constructor_is_pure,
        checks_spec.check_initial_weights_follow_the_seed,
        checks_spec.check_unknown_argument,
        checks_spec.check_hparams_are_plain,
        checks_fit.check_fit,
        checks_fit.check_fit_changes_something,
        checks_fit.check_gradients,
        checks_fit.check_loss,
        checks_fit.check_training_owns_its_randomness,
        checks_fit.check_trainer_limits,
        checks_fit.check_ema,
        checks_fit.check_unlabelled_data,
        checks_fit.check_few_items,
        checks_fit.check_foreign_batches,
        checks_fit.check_held_out_data_is_not_used,
        checks_fit.check_budget,
        checks_fit.check_checkpoint_round_trip,
        checks_fit.check_corrupt_checkpoint,
        checks_sample.check_counts,
        checks_sample.check_items_are_valid,
        checks_sample.check_sample_before_fit,
        checks_sample.check_rows_depend_on_their_seed_only,
        checks_sample.check_seeds_differ,
        checks_sample.check_sampling_is_repeatable,
        checks_sample.check_labels_are_honoured,
        checks_sample.check_bad_labels_are_refused,
        checks_sample.check_guidance,
        checks_sample.check_continuous_conditions,
        checks_sample.check_predict_writes_every_row,
    )
}
_DOMAIN_NEEDS = {"graph": "torch_geometric", "node": "torch_geometric", "molecule": "torch_geometric"}


def _spec_of(target: Target) -> GeneratorSpec | None:
    if isinstance(target, str):
        return get_spec(target)
    return target if isinstance(target, GeneratorSpec) else None


def _domains(target: Target) -> tuple[str, ...]:
    spec = _spec_of(target)
    domain = spec.domain if spec else getattr(target, "domain", "any")
    return DOMAINS if domain == "any" else (domain,)


def _name(target: Target) -> str:
    spec = _spec_of(target)
    return spec.name if spec else getattr(target, "__name__", str(target))


def _expected_failures(target: Target) -> dict[str, str]:
    spec = _spec_of(target)
    expected = dict(spec.expected_failures) if spec else {}
    # "check" holds in every domain, "check[domain]" in one.
    unknown = {name.partition("[")[0] for name in expected} - CHECKS.keys()
    if unknown:
        raise ConfigError(f"generator {_name(target)!r} expects failures of unknown checks: {sorted(unknown)}")
    return expected


def _missing(target: Target, domain: str) -> str:
    """Say which package is missing for this generator in this domain; empty if none is."""
    spec, needed = _spec_of(target), _DOMAIN_NEEDS.get(domain)
    missing = spec.missing() if spec else []
    if needed and importlib.util.find_spec(needed) is None:
        missing = [*missing, needed]
    return f"{', '.join(dict.fromkeys(missing))} not installed" if missing else ""


def _make_case(target: Target, domain: str) -> Case:
    spec = _spec_of(target)
    if spec is not None:
        return Case(spec.load(), domain, dict(spec.tiny), spec)
    assert isinstance(target, type)
    return Case(target, domain)


class _Lazy:
    """Makes cases on demand and keeps the last two: checks of one generator share one fit."""

    def __init__(self) -> None:
        self._kept: dict[Any, Case] = {}

    def __call__(self, target: Target, domain: str) -> Case:
        spec = _spec_of(target)
        key = (spec.name, spec.target, repr(spec.tiny), domain) if spec else (target, domain)
        if key not in self._kept:
            while len(self._kept) > 1:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = _make_case(target, domain)
        return self._kept[key]


_case = _Lazy()


def _plan(target: Target) -> Iterator[tuple[str, str, Check]]:
    """Yield (domain, label, check); the label says the domain where there are several."""
    domains = _domains(target)
    for domain in domains:
        for name, check in CHECKS.items():
            yield domain, f"{name}[{domain}]" if len(domains) > 1 else name, check


def check_generator(target: Target, raise_on_failure: bool = True) -> dict[str, str]:
    """Run the conformance suite on a generator.

    Args:
        target: A registered name, a `GeneratorSpec`, or a class (which must work with its default hyper-parameters).
        raise_on_failure: Raise at the end if something failed; False returns the failures in the result.

    Returns:
        Check name to ``"passed"``, ``"skipped: why"``, ``"failed: why"`` or ``"expected failure: why"``. Generators of
        any domain are checked in every domain: ``"check_fit[graph]"``.

    Raises:
        AssertionError: Naming every failed check, or an expected failure that did not happen.

    Example:
        >>> results = check_generator("bootstrap")
        >>> results["check_counts[timeseries]"]
        'passed'
    """
    expected = _expected_failures(target)
    results: dict[str, str] = {}
    for domain, label, check in _plan(target):
        reason = expected.get(label) or expected.get(check.__name__)
        results[label] = _run(target, domain, check, reason)
    failed = [
        f"{name}: {result.removeprefix('failed: ')}" for name, result in results.items() if result.startswith("failed")
    ]
    if failed and raise_on_failure:
        raise AssertionError(f"{_name(target)} fails {len(failed)} of {len(results)} checks\n  " + "\n  ".join(failed))
    return results


def _run(target: Target, domain: str, check: Check, expected: str | None) -> str:
    if missing := _missing(target, domain):
        return f"skipped: {missing}"
    try:
        check(_case(target, domain))
    except Skipped as skip:
        return f"skipped: {skip}"
    except Exception as error:
        return f"expected failure: {expected}" if expected else f"failed: {type(error).__name__}: {error}"
    return f"failed: passes, but the spec expects it to fail ({expected})" if expected else "passed"


def parametrize_with_checks(targets: Iterable[Target]) -> Any:
    """Make one pytest case of every check on every generator.

    Expected failures of a spec are strict: a check that passes against the expectation fails. Generators whose packages
    are not installed are skipped with the reason.

    Args:
        targets: Names, specs or classes, as `check_generator`.

    Returns:
        A ``pytest.mark.parametrize`` over the argument ``check``, a function without arguments.

    Example:
        >>> @parametrize_with_checks(["bootstrap"])
        ... def test_conformance(check):
        ...     check()
    """
    import pytest

    return pytest.mark.parametrize("check", [param for target in targets for param in _params(target)])


def _params(target: Target) -> Iterator[Any]:
    import pytest

    expected = _expected_failures(target)
    for domain, label, check in _plan(target):
        marks: list[Any] = []
        if missing := _missing(target, domain):
            marks.append(pytest.mark.skip(reason=missing))
        elif reason := expected.get(label) or expected.get(check.__name__):
            marks.append(pytest.mark.xfail(reason=reason, strict=True))
        yield pytest.param(
            functools.partial(_as_test, target, domain, check), id=f"{_name(target)}-{label}", marks=marks
        )


def _as_test(target: Target, domain: str, check: Check) -> None:
    import pytest

    try:
        check(_case(target, domain))
    except Skipped as skip:
        pytest.skip(str(skip))
