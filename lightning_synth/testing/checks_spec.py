"""Checks of what a generator is before it sees data: description, constructor, hyper-parameters."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_synth.generator import Generator
from lightning_synth.testing.case import Case, Skipped, watch_global_rng

_REFERENCE = re.compile(r"arxiv|doi|isbn|https?://|\b(1[89]|20)\d\d\b", re.IGNORECASE)


def check_spec(case: Case) -> None:
    """The description is plain, can be pickled, and says the same as the class it points to."""
    if case.spec is None:
        raise Skipped("a class was given, not a spec")
    spec = case.spec
    assert pickle.loads(pickle.dumps(spec)) == spec, "the spec does not survive pickling"
    json.dumps([dict(spec.tiny), dict(spec.expected_failures)])
    cls = spec.load()
    assert isinstance(cls, type) and issubclass(cls, Generator), f"{spec.target} is no Generator"
    assert cls.domain == spec.domain, f"spec says domain {spec.domain!r}, the class {cls.domain!r}"
    assert tuple(cls.conditions) == tuple(spec.conditions), f"spec says {spec.conditions}, the class {cls.conditions}"
    assert spec.summary and spec.reference, "summary or reference is empty"


def check_docstring(case: Case) -> None:
    """The class says what it does and names its source (author and year, arXiv id, DOI or address)."""
    text = case.cls.__doc__ or ""
    assert text.strip(), "no docstring"
    assert _REFERENCE.search(text), "the docstring names no source: give author and year, arXiv id or DOI"


def check_constructor_is_pure(case: Case) -> None:
    """Building one leaves the global random generators and the working directory alone."""
    here = Path.cwd()
    with TemporaryDirectory() as empty:
        os.chdir(empty)
        try:
            with watch_global_rng() as kept:
                case.fresh()
                case.fresh(schema=case.schema)
            written = os.listdir(empty)
        finally:
            os.chdir(here)
    assert kept[0], "the constructor draws from a global random generator"
    assert not written, f"the constructor wrote {written}"


def check_initial_weights_follow_the_seed(case: Case) -> None:
    """The same seed gives the same networks, whatever the global generators hold."""
    first, second = (case.fresh(schema=case.schema, seed=5).state_dict() for _ in range(2))
    assert first.keys() == second.keys(), "two constructions have different parameters"
    unequal = [name for name, value in first.items() if hasattr(value, "shape") and not value.equal(second[name])]
    assert not unequal, f"initial values depend on more than the seed: {unequal[:3]}"


def check_unknown_argument(case: Case) -> None:
    """A misspelt hyper-parameter is a TypeError that names the right one."""
    names = [name for name, p in inspect.signature(case.cls.__init__).parameters.items() if p.kind == p.KEYWORD_ONLY]
    right = max([*names, "schema"], key=len)
    try:
        case.fresh(**{right[:-1]: 1})
    except TypeError as error:
        assert right in str(error), f"the error for {right[:-1]!r} does not suggest {right!r}: {error}"
    else:
        raise AssertionError(f"the unknown argument {right[:-1]!r} was accepted")


def check_hparams_are_plain(case: Case) -> None:
    """Hyper-parameters are numbers, strings, lists and dicts: with others torch refuses to load the checkpoint."""
    for generator in (case.fresh(), case.fresh(schema=case.schema), case.fitted.generator):
        try:
            text = json.dumps(dict(generator.hparams))
        except TypeError as error:
            raise AssertionError(f"hyper-parameters are not plain: {error}") from error
        assert json.loads(text).keys() == dict(generator.hparams).keys()
