"""tsaug: all ten augmenters, of the right length, from the row's own seed, with the label kept."""

import numpy as np
import pytest
import torch

pytest.importorskip("tsaug")

from lightning_synth.errors import ConfigError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.tsaug import DEFAULT_PIPELINE, TSAug
from lightning_synth.schema import describe
from lightning_synth.testing import tiny_series, tiny_series_schema

TEN = {"AddNoise", "Convolve", "Crop", "Drift", "Dropout", "Pool", "Quantize", "Resize", "Reverse", "TimeWarp"}


def fitted(channels=2, length=40, **options):
    return TSAug(**options).fit_on(tiny_series(12, channels, length), tiny_series_schema(channels, length, n=12))


def test_all_ten_augmenters_are_in_the_default_pipeline():
    import tsaug

    assert set(DEFAULT_PIPELINE) == TEN
    assert all(hasattr(tsaug, name) for name in TEN)


@pytest.mark.parametrize("name", sorted(TEN))
@pytest.mark.parametrize("length", (5, 40))
def test_each_augmenter_changes_windows_and_keeps_their_shape(name, length):
    model = fitted(length=length, pipeline={name: DEFAULT_PIPELINE[name]}, prob=1.0)
    x = model.sample(6, seed=1).data["x"]
    assert x.shape == (6, 2, length) and x.dtype == torch.float32 and torch.isfinite(x).all()
    copied = (x[:, None] == model.windows["x"][None]).flatten(2).all(2).any(1)
    # A dropout of 3 % spares some short windows.
    assert not copied.all() if name == "Dropout" and length == 40 else name == "Dropout" or not copied.any()


@pytest.mark.parametrize(
    ("name", "options"),
    [("Reverse", {}), ("Pool", {"size": 4}), ("Quantize", {"n_levels": 5}), ("Convolve", {"size": 5})],
)
def test_an_augmenter_is_that_of_tsaug(name, options):
    """Those that draw nothing: with one window in the bank, every row is what tsaug makes of it."""
    import tsaug

    items = tiny_series(1, 2, 40, num_classes=0)
    model = TSAug(pipeline={name: options}, prob=1.0).fit_on(items, describe(items, "timeseries"))
    expected = getattr(tsaug, name)(**options).augment(items.tensors["x"].double().numpy().transpose(0, 2, 1))
    got = model.sample(3).data["x"].numpy()
    assert np.allclose(got, np.broadcast_to(expected.transpose(0, 2, 1), got.shape), atol=1e-4)


def test_probability_decides_how_many_rows_change():
    model = fitted(pipeline={"Reverse": {}}, prob=0.3)
    x, bank = model.sample(400, seed=1).data["x"], model.windows["x"]
    copies = (x[:, None] == bank[None]).flatten(2).all(2).any(1)
    assert abs(float(copies.float().mean()) - 0.7) < 0.07


def test_rows_depend_on_their_own_seed_only_and_differ():
    model = fitted()
    requests = model.make_requests(9, seed=3)
    together = model.sample(requests).data["x"]
    assert torch.equal(together, torch.cat([model.sample(requests[i : i + 1]).data["x"] for i in range(9)]))
    assert len(torch.unique(together, dim=0)) == 9


def test_global_generators_are_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    fitted(prob=1.0).sample(5)
    assert np.array_equal(before, np.random.get_state()[1])


def test_labels_and_conditions_are_those_of_the_source():
    model = fitted(pipeline={"AddNoise": {"scale": 0.0}}, prob=1.0)
    data = model.sample(9, condition={"label": "balanced"}).data
    assert data["y"].tolist() == [0, 1, 2] * 3
    bank = model.windows
    source = torch.cdist(data["x"].flatten(1), bank["x"].flatten(1)).argmin(1)
    assert torch.equal(bank["y"][source], data["y"])


def test_padding_is_left_alone():
    mask = torch.arange(20)[None] < torch.tensor([2, 8, 20])[:, None]
    items = StackedItems({"x": torch.where(mask, 1.0 + torch.arange(20) % 3, 0.0)[:, None], "mask": mask})
    data = TSAug(prob=1.0).fit_on(items, describe(items, "timeseries")).sample(20, seed=1).data
    assert (data["x"][:, 0][~data["mask"]] == 0).all()


def test_unknown_augmenters_and_arguments_are_refused():
    with pytest.raises(ConfigError, match="Wobble"):
        TSAug(pipeline={"Wobble": {}})
    with pytest.raises(ConfigError, match="prob"):
        TSAug(prob=2.0)
    with pytest.raises(ConfigError, match="AddNoise"):
        fitted(pipeline={"AddNoise": {"loudness": 3}}, prob=1.0).sample(1)
