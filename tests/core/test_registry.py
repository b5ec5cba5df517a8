"""Names, extras, conflicts, and how light it all is."""

import json
import pickle
import subprocess
import sys

import pytest

import lightning_synth as ls
from lightning_synth import registry
from lightning_synth.errors import ConfigError, MissingExtraError, UnknownGeneratorError

SPEC = registry.GeneratorSpec(
    "toy_for_test", "nowhere_at_all:Toy", "graph", "A toy.", "none", requires=("nowhere_at_all",)
)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    ls.register(SPEC)


def test_import_is_light():
    code = (
        "import sys, time; t = time.perf_counter(); import lightning_synth; t = time.perf_counter() - t;"
        "heavy = [m for m in ('torch', 'lightning', 'numpy', 'pandas') if m in sys.modules];"
        "names = lightning_synth.list_generators();"
        "extra = [m for m in ('torch', 'torch_geometric', 'rdkit', 'sktime', 'tsaug', 'imblearn') if m in sys.modules];"
        "import json; print(json.dumps([t, heavy, len(names), extra]))"
    )
    seconds, heavy, count, extra = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert heavy == [] and extra == [] and count > 5
    assert seconds < 0.2


def test_every_public_name_exists():
    for name in ls.__all__:
        assert getattr(ls, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = ls.nonsense


def test_unknown_names_come_with_near_ones():
    with pytest.raises(UnknownGeneratorError, match="did you mean .*bootstrap"):
        ls.get_generator("bootstrapp")


def test_missing_packages_name_the_remedy(registered):
    assert "toy_for_test" in ls.list_generators("graph", available=False)
    assert "toy_for_test" not in ls.list_generators("graph", available=True)
    assert "toy_for_test" not in ls.list_generators("timeseries")
    with pytest.raises(MissingExtraError, match="pip install nowhere_at_all"):
        ls.get_generator("toy_for_test")


def test_two_providers_of_one_name_are_refused(registered):
    other = registry.GeneratorSpec("toy_for_test", "elsewhere:Toy", "graph", "Another.", "none")
    with pytest.raises(ConfigError, match=r"nowhere_at_all:Toy and elsewhere:Toy"):
        ls.register(other)


def test_a_broken_package_is_reported_and_hides_nothing():
    from importlib.metadata import EntryPoint

    with pytest.warns(UserWarning, match="broken = absent_package"):
        specs = registry._collect(
            [
                EntryPoint("broken", "absent_package:GENERATORS", registry.GROUP),
                EntryPoint("any", "lightning_synth.plugins:GENERATORS", registry.GROUP),
            ]
        )
    assert "bootstrap" in specs


@pytest.mark.parametrize(
    "bad", [{"name": "Bad-Name"}, {"domain": "audio"}, {"target": "module.Class"}], ids=["name", "domain", "target"]
)
def test_bad_specs_are_refused(bad):
    fields = {"name": "good", "target": "m:C", "domain": "graph", "summary": "s", "reference": "r", **bad}
    with pytest.raises(ConfigError):
        registry.GeneratorSpec(**fields)


def test_specs_are_picklable():
    assert pickle.loads(pickle.dumps(SPEC)) == SPEC


def test_unknown_domain():
    with pytest.raises(ConfigError, match="not one of"):
        ls.list_generators("audio")
