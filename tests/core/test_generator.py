"""The contract that every generator inherits, shown on two toys."""

import numpy as np
import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_synth.errors import (
    ConfigError,
    InvalidSamplesError,
    NonFiniteLossError,
    NotFittedError,
    SchemaMismatchError,
)
from lightning_synth.generator import FitFreeGenerator, Generator
from lightning_synth.requests import KeyedRNG, SampleRequests
from lightning_synth.testing import tiny_datamodule


class Toy(Generator):
    domain = "timeseries"
    conditions = ("label", "*")

    def __init__(self, *, width: int = 4, break_at: int = -1, bad_share: float = 0.0, **kwargs):
        super().__init__(width=width, break_at=break_at, bad_share=bad_share, **kwargs)

    def build(self, schema):
        self.shape = (schema["channels"], schema["length"])
        self.net = torch.nn.Linear(self.hparams.width, self.shape[0] * self.shape[1])
        self.seen = []

    def losses(self, batch, rng):
        z = rng.normal((len(batch["x"]), self.hparams.width))
        self.seen.append(float(z.sum()))
        loss = (self.net(z).view_as(batch["x"]) - batch["x"]).square().mean()
        return {"loss": loss * (float("nan") if len(self.seen) == self.hparams.break_at else 1.0)}

    def sample_batch(self, requests, rng, *, scale: float = 1.0):
        x = scale * self.net(rng.normal((self.hparams.width,))).view(-1, *self.shape)
        x[: int(self.hparams.bad_share * len(x))] = float("nan")
        return {"x": x}


class Copy(FitFreeGenerator):
    domain = "timeseries"
    conditions = ("label",)

    def sample_batch(self, requests, rng):
        return {"x": self.bank.batch["x"][rng.integers(len(self.bank))]}


class TupleData(LightningDataModule):
    """A user's own data module: no base class, no schema, tuple batches."""

    def __init__(self, x=None):
        super().__init__()
        self.x = torch.randn(20, 2, 12) if x is None else x

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.x, torch.arange(len(self.x)) % 3), batch_size=8)


def test_schema_comes_from_our_datamodule(trainer_kwargs):
    data, toy = tiny_datamodule("timeseries"), Toy()
    assert not toy.is_built
    Trainer(max_epochs=1, **trainer_kwargs).fit(toy, data)
    assert toy.schema == data.schema and toy.is_fitted
    assert toy.training_fingerprint["num_items"] == len(data.train_items())


@pytest.mark.parametrize("bare", [False, True], ids=["datamodule", "bare loader"])
def test_schema_is_inferred_from_foreign_data(trainer_kwargs, bare):
    toy, data = Toy(), TupleData()
    if bare:
        Trainer(max_epochs=1, **trainer_kwargs).fit(toy, data.train_dataloader())
    else:
        Trainer(max_epochs=1, **trainer_kwargs).fit(toy, data)
    assert toy.schema["layout"] == ["x", "y"] and toy.schema["class_counts"] == [7, 7, 6]
    samples = toy.sample(5, condition={"label": [0, 1, 2, 0, 1]})
    assert samples.data["y"].tolist() == [0, 1, 2, 0, 1] and samples.items()[0]["x"].shape == (2, 12)


def test_unknown_and_unplain_arguments():
    with pytest.raises(TypeError, match="did you mean 'width'"):
        Toy(widht=3)
    with pytest.raises(TypeError, match="no argument 'foo'"):
        Copy(foo=1)
    with pytest.raises(ConfigError, match="Tensor"):
        Toy(width=torch.ones(1))
    with pytest.raises(ConfigError, match="lr must be positive"):
        Toy(lr=-1.0)


def test_a_class_may_take_undeclared_hyper_parameters():
    class Sketch(Generator):
        domain = "timeseries"

        def build(self, schema):
            self.net = torch.nn.Linear(1, self.hparams.latent_dim)

        def losses(self, batch, rng):
            return {"loss": self.net.weight.sum()}

        def sample_batch(self, requests, rng):
            return {"x": rng.normal((1, self.hparams.latent_dim))}

    model = Sketch(latent_dim=4, schema=tiny_datamodule("timeseries").schema)
    with pytest.warns(UserWarning, match="initial weights"):
        assert model.sample(3).data["x"].shape == (3, 1, 4)


def test_sampling_before_fit():
    with pytest.raises(NotFittedError, match="call Trainer"):
        Toy().sample(3)
    with pytest.raises(NotFittedError, match="call Trainer"):
        Copy(schema=tiny_datamodule("timeseries").schema).sample(3)


def test_construction_and_sampling_leave_the_global_generator_alone(trainer_kwargs):
    data = tiny_datamodule("timeseries")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = Toy(schema=data.schema)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    second = Toy(schema=data.schema)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.net.weight, Toy(schema=data.schema, seed=1).net.weight)


def test_training_noise_is_a_function_of_seed_and_step(trainer_kwargs):
    runs = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        toy = Toy()
        Trainer(max_steps=6, max_epochs=-1, **trainer_kwargs).fit(toy, tiny_datamodule("timeseries"))
        runs.append(toy.seen)
    assert runs[0] == runs[1] and len(set(runs[0])) == 6


@pytest.mark.parametrize("limit", [{"max_steps": 5, "max_epochs": -1}, {"max_epochs": 2}])
def test_progress_follows_the_budget(trainer_kwargs, limit):
    seen = []

    class Watch(Toy):
        def losses(self, batch, rng):
            seen.append(self.progress)
            return super().losses(batch, rng)

    Trainer(**limit, **trainer_kwargs).fit(Watch(), tiny_datamodule("timeseries"))
    assert seen[0] == 0 and seen == sorted(seen) and 0.5 <= seen[-1] < 1


def test_rows_depend_on_their_own_request_only():
    toy = Toy(schema=tiny_datamodule("timeseries").schema)
    toy.is_fitted = True
    requests = toy.make_requests(9, condition="balanced", seed=4)
    whole = toy.sample(requests)
    assert torch.allclose(toy.sample(requests[3:5]).data["x"], whole.data["x"][3:5])
    toy.sample_chunk = 2  # type: ignore[misc]
    again = toy.sample(requests)
    assert torch.allclose(again.data["x"], whole.data["x"]) and torch.equal(again.index, whole.index)
    assert not torch.allclose(toy.sample(9, seed=5).data["x"], whole.data["x"])


def test_counts_options_and_modes():
    toy = Toy(schema=tiny_datamodule("timeseries").schema)
    toy.is_fitted = True
    toy.train()
    assert len(toy.sample(0)) == 0 and toy.sample(0).data["x"].shape[0] == 0
    assert toy.training
    assert torch.allclose(toy.sample(4, scale=2.0).data["x"], 2 * toy.sample(4).data["x"])
    with pytest.raises(ConfigError, match="cannot sample -1"):
        toy.sample(-1)
    assert len(toy.sample(np.int64(3))) == 3
    with pytest.raises(ConfigError, match="cannot sample 2.0 items"):
        toy.sample(2.0)
    with pytest.raises(ConfigError, match="condition must be a dict"):
        toy.sample(2, condition=[0, 1])


def test_samples_are_cut_off_the_computation():
    class Graph(Toy):
        def sample_batch(self, requests, rng):
            with torch.enable_grad():
                return super().sample_batch(requests, rng)

    toy = Graph(schema=tiny_datamodule("timeseries").schema)
    toy.is_fitted = True
    assert not toy.sample(3).data["x"].requires_grad


def test_requests_made_elsewhere_get_their_conditions():
    toy = Toy(schema=tiny_datamodule("timeseries").schema)
    toy.is_fitted = True
    bare = SampleRequests.make(6, seed=2)
    assert torch.equal(toy.sample(bare).condition["label"], toy.sample(6, seed=2).condition["label"])


def test_unusable_rows_are_marked_and_too_many_are_an_error():
    schema = tiny_datamodule("timeseries").schema
    few, many = Toy(schema=schema, bad_share=0.25), Toy(schema=schema, bad_share=0.75)
    few.is_fitted = many.is_fitted = True
    assert few.sample(8).accepted.tolist() == [False] * 2 + [True] * 6
    with pytest.raises(InvalidSamplesError, match="75%"):
        many.sample(8)


def test_a_non_finite_loss_stops_with_its_batch_saved(trainer_kwargs, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"at step 2.*non_finite_batch_step2\.pt"):
        Trainer(max_steps=9, **trainer_kwargs).fit(Toy(break_at=3), tiny_datamodule("timeseries"))
    assert torch.load(tmp_path / "non_finite_batch_step2.pt", weights_only=True)["x"].ndim == 3


def test_other_data_and_other_domains_are_refused(trainer_kwargs):
    toy = Toy(schema=tiny_datamodule("timeseries").schema)
    with pytest.raises(SchemaMismatchError, match="channels|length"):
        Trainer(max_steps=1, **trainer_kwargs).fit(toy, TupleData(torch.randn(20, 5, 7)))
    with pytest.raises(SchemaMismatchError, match="graph"):
        Trainer(max_steps=1, **trainer_kwargs).fit(Toy(), tiny_datamodule("graph"))


def test_fit_free_generators_gather_once_and_stop(trainer_kwargs):
    data, copy = tiny_datamodule("timeseries", n=20, batch_size=4), Copy()
    trainer = Trainer(max_epochs=50, **trainer_kwargs)
    trainer.fit(copy, data)
    assert trainer.current_epoch <= 1 and trainer.global_step == 1 and len(copy.bank) == 20
    alone = Copy().fit_on(data.train_items(), data.schema)
    assert torch.equal(alone.sample(7).data["x"], copy.sample(7).data["x"])
    shuffled = Copy().fit_on(data.train_items()[torch.randperm(20)], data.schema)
    assert torch.equal(shuffled.sample(7).data["x"], copy.sample(7).data["x"])


def test_the_base_noise_helper_has_a_scalar_key():
    assert Toy(schema=tiny_datamodule("timeseries").schema).training_rng().normal((3, 2)).shape == (3, 2)
    assert isinstance(KeyedRNG(1).fork("x"), KeyedRNG)
