"""The sequence model of molecules: always valid, cached as not cached, conditions, guidance, best of k."""

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import Descriptors

from lightning_synth.datamodules import ItemsDataModule
from lightning_synth.decoder import KeyValueCache
from lightning_synth.errors import ConfigError
from lightning_synth.graphs import DenseGraphs
from lightning_synth.molecules import BOND_TYPES, encode, fit_vocabulary
from lightning_synth.plugins.molecule.molecule_sequence import MoleculeSequence, _draw, _How, view
from lightning_synth.plugins.molecule.molecule_sequence_tokens import Grammar
from lightning_synth.pool import SyntheticPool
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import collate, describe
from lightning_synth.testing import tiny_datamodule, tiny_schema
from lightning_synth.testing.case import quiet_trainer

SMALL = {"d_model": 16, "depth": 1, "heads": 2}
CHAINS = ["C" * n + tail for n in range(1, 9) for tail in ("", "O", "N", "=O", "F")]


def weights_of(smiles):
    return [Descriptors.MolWt(Chem.MolFromSmiles(text)) for text in smiles]


def chains(with_text=False):
    """Items with their weight and number of atoms."""
    types = fit_vocabulary(CHAINS)
    items = [
        encode(text, types, y=[weight, len(text.strip("="))], text=f"ends in {text[-1]}" if with_text else None)
        for text, weight in zip(CHAINS, weights_of(CHAINS), strict=True)
    ]
    known = {"atom_types": types, "bond_types": list(BOND_TYPES), "property_names": ["weight", "size"]}
    return items, describe(items, "molecule", **known)


def fitted(items, schema, steps=120, **options):
    data = ItemsDataModule(items, items[:1], items[1:2], schema=schema, domain="molecule", batch_size=40)
    model = MoleculeSequence(**{**SMALL, "d_model": 48, "lr": 1e-2, **options})
    quiet_trainer(max_steps=steps).fit(model, datamodule=data)
    return model


@pytest.fixture(scope="module")
def model():
    return fitted(*chains())


@pytest.fixture(scope="module")
def untrained():
    model = MoleculeSequence(schema=chains()[1], **SMALL)
    model.is_fitted = True
    return model


def smiles_of(samples):
    return [item.smiles for item in samples.items()]


def test_random_weights_make_valid_molecules(untrained):
    written = smiles_of(untrained.sample(300, seed=0, temperature=3.0))
    assert all(written) and all(Chem.MolFromSmiles(text) is not None for text in written)
    assert not any("." in text for text in written)


def test_cached_logits_are_those_of_the_whole_sequence(untrained):
    items, schema = chains()
    tokens = untrained.codec.encode(
        DenseGraphs.from_batch(collate(items, schema)),
        torch.rand(len(items), schema["max_nodes"], generator=torch.Generator().manual_seed(0)),
    )
    condition = torch.randn(len(tokens), 16, generator=torch.Generator().manual_seed(1))
    views, _ = untrained._trace(tokens)
    whole = untrained.transformer.out(untrained.transformer(views, condition))
    cache = KeyValueCache()
    for t in range(tokens.shape[1]):
        step = untrained.transformer.following(views[:, t], condition, cache)
        assert torch.allclose(step, whole[:, t], atol=1e-5)
        # Half of the rows leave after a few positions.
        if t == 4:
            rows = torch.arange(0, len(tokens), 2)
            cache.keep(rows)
            views, condition, whole = views[rows], condition[rows], whole[rows]


def test_the_view_is_the_same_in_training_and_sampling(untrained):
    grammar = Grammar(untrained.codec, 1, 9)
    tokens = untrained.codec.encode(*_one(untrained, "CC(C)C"))
    views, _ = untrained._trace(tokens)
    latest = torch.zeros(1, dtype=torch.int64)
    for t, token in enumerate(tokens.T):
        assert torch.equal(view(grammar, latest), views[:, t])
        grammar.advance(token)
        latest = token


def _one(model, text):
    item = encode(text, model.schema, y=[0.0, 0.0])
    graphs = DenseGraphs.from_batch(collate([item], model.schema))
    return graphs, torch.arange(graphs.mask.shape[1])[None]


def test_draws_follow_the_probabilities_of_allowed_tokens():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(4000, 4)
    allowed = torch.tensor([True, False, True, True])
    u = KeyedRNG(torch.arange(4000)).uniform(())
    shares = _draw(logits, allowed.expand(4000, 4), _How(2.0, None, 1.0, []), u).bincount(minlength=4) / 4000
    want = torch.softmax(torch.tensor([0.0, -torch.inf, 1.0, 1.5]), 0)
    assert torch.allclose(shares, want, atol=0.03)
    top = _draw(logits, allowed.expand(4000, 4), _How(1.0, 2, 1.0, []), u)
    assert top.unique().tolist() == [2, 3]
    edge, low = torch.full((4000,), 1 - 2**-24), torch.tensor([True, True, False, False])
    assert (_draw(logits, low.expand(4000, 4), _How(1.0, None, 1.0, []), edge) == 1).all()


def test_rows_do_not_depend_on_the_batch_size(model):
    requests = model.make_requests(20, {"weight": 80.0}, seed=5)
    together = smiles_of(model.sample(requests, guidance_scale=1.5))
    parts = [model.sample(requests[i : i + 3], guidance_scale=1.5) for i in range(0, 20, 3)]
    assert [text for part in parts for text in smiles_of(part)] == together


def test_most_samples_are_of_the_training_kind_after_training(model):
    written = smiles_of(model.sample(200, condition={}, seed=0))
    known = {Chem.CanonSmiles(text) for text in CHAINS}
    assert sum(text in known for text in written) > 120
    assert len(set(written)) > 20


def test_conditions_move_the_samples(model):
    for weight in (50.0, 100.0):
        got = torch.tensor(weights_of(smiles_of(model.sample(100, condition={"weight": weight}, seed=1))))
        assert abs(float(got.median()) - weight) < 15


def test_unnamed_properties_are_unspecified(model):
    samples = model.sample(5, condition={"weight": 80.0})
    assert samples.condition["size"].isnan().all() and (samples.condition["weight"] == 80).all()
    assert model.sample(3).condition["size"].isfinite().all(), "without a dict: as in training"
    nothing = model.sample(40, condition={}, seed=2)
    assert smiles_of(nothing) == smiles_of(model.sample(40, condition={"weight": 80.0}, seed=2, guidance_scale=0))


def test_guidance_is_unconditional_at_0_conditional_at_1_and_more_beyond(model):
    plain = smiles_of(model.sample(60, condition={"weight": 110.0}, seed=3))
    assert smiles_of(model.sample(60, condition={"weight": 110.0}, seed=3, guidance_scale=1.0)) == plain
    near = smiles_of(model.sample(60, condition={"weight": 110.0}, seed=3, guidance_scale=1.0 + 1e-6))
    assert sum(a == b for a, b in zip(near, plain, strict=True)) > 55
    means = [
        sum(weights_of(smiles_of(model.sample(100, condition={"weight": 110.0}, seed=3, guidance_scale=s)))) / 100
        for s in (0.0, 1.0, 3.0)
    ]
    assert means[0] + 5 < means[1] and means[2] > means[1] - 5


def test_guidance_without_a_null_condition_is_refused():
    with pytest.raises(ConfigError, match="never trained"):
        MoleculeSequence(condition_dropout=0.0, guidance_scale=2.0)
    model = MoleculeSequence(schema=chains()[1], condition_dropout=0.0, **SMALL)
    model.is_fitted = True
    with pytest.raises(ConfigError, match="condition_dropout was 0"):
        model.sample(2, condition={"weight": 50.0}, guidance_scale=2.0)
    with pytest.raises(ConfigError, match="never trained"):
        model.sample(2, condition={})


def test_best_of_keeps_the_candidate_that_the_head_prefers(model):
    one = model.sample(100, condition={"weight": 95.0}, seed=4)
    best = model.sample(100, condition={"weight": 95.0}, seed=4, best_of=8)
    assert not one.score
    assert (best.score["best_of"] == 8).all() and best.score["predicted_distance"].shape == (100,)

    def error(samples):
        return sum(abs(weight - 95.0) for weight in weights_of(smiles_of(samples))) / 100

    assert error(best) < error(one)
    with pytest.raises(ConfigError, match="at least one"):
        model.sample(2, condition={}, best_of=2)


def test_the_property_head_learns(model):
    tokens = model.codec.encode(*_one(model, "CCCCCCO"))
    with torch.no_grad(), model.averaged_weights():
        predicted = (
            model._predicted(tokens, _How(1.0, None, 1.0, [None]))[0] * model.conditioning.stats[1]
            + model.conditioning.stats[0]
        )
    assert abs(float(predicted[0]) - 102.2) < 12


def test_missing_properties_train():
    items, schema = chains()
    for i, item in enumerate(items):
        item.y = item.y.clone()
        item.y[0, i % 2] = torch.nan
    types = {key: schema[key] for key in ("atom_types", "bond_types")}
    model = fitted(items, describe(items, "molecule", **types, property_names=["weight", "size"]), steps=20)
    assert all(bool(value.isfinite().all()) for value in model.parameters())
    assert len(model.sample(4, condition={"size": 5.0})) == 4


def test_text_conditions_move_the_samples():
    model = fitted(*chains(with_text=True), steps=120)
    ends = {}
    for letter in "FN":
        written = smiles_of(model.sample(60, condition={"text": f"ends in {letter}"}, seed=0))
        ends[letter] = sum(letter in text for text in written)
    assert min(ends.values()) > 40
    mixed = model.sample(2, condition={"text": ["ends in F", ""]})
    assert mixed.condition["text"].tolist() == ["ends in F", ""]


def test_text_without_descriptions_is_refused(model):
    with pytest.raises(ConfigError, match="no descriptions"):
        model.sample(1, condition={"text": "an ester"})


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"weight": float("inf")}, "non-finite"),
        ({"weight": float("nan")}, "leave a condition out"),
        ({"wieght": 1.0}, "known: weight, size, scaffold, text"),
        ({"weight": "heavy"}, "is a number"),
        ({"scaffold": 3}, "string"),
        ({"scaffold": ["C", "CC", "CCC"]}, "3 values"),
    ],
)
def test_bad_conditions_are_refused(model, condition, message):
    with pytest.raises((ConfigError, TypeError), match=message):
        model.sample(2, condition=condition)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 0}, {"best_of": 0}, {"guidance_scale": torch.nan}])
def test_bad_options_are_refused(model, options):
    with pytest.raises(ConfigError):
        model.sample(1, **options)


@pytest.mark.parametrize("options", [{"d_model": 10}, {"random_orders": 2.0}, {"condition_dropout": 1.0}])
def test_bad_hyper_parameters_are_refused(options):
    with pytest.raises(ConfigError):
        MoleculeSequence(**options)


def test_pools_keep_strings(model, tmp_path):
    condition = {"scaffold": ["CC", "CCO", ""], "weight": 80.0}
    pool = SyntheticPool.generate(model, n=3, condition=condition, seed=0, progress=False)
    pool.save(tmp_path / "pool")
    again = SyntheticPool.open(tmp_path / "pool")
    assert again.to_pandas()["condition.scaffold"].tolist() == ["CC", "CCO", ""]
    assert again.content_hash == pool.content_hash


def test_salts_are_learned_as_salts():
    smiles = ["C[N+](C)(C)C.[Cl-]", "C[N+](C)(C)CC.[Cl-]", "CC[N+](C)(C)CC.[Cl-]"] * 4
    types = fit_vocabulary(smiles)
    items = [encode(text, types) for text in smiles]
    model = fitted(items, describe(items, "molecule", atom_types=types, bond_types=list(BOND_TYPES)), steps=80)
    assert sum("." in text for text in smiles_of(model.sample(20))) > 15


def test_a_datamodule_without_properties_has_no_head():
    assert tiny_datamodule("molecule").schema["properties"]
    bare = {**tiny_schema("molecule"), "properties": {}, "condition_rows": {}}
    model = MoleculeSequence(schema=bare, condition_dropout=0.0, **SMALL)
    model.is_fitted = True
    assert model.head is None and model.conditioning.numbers is None
    assert len(model.sample(2)) == 2


def test_more_rings_than_usual_are_learned():
    # Cages have more bonds than trees of as many atoms have places for in the usual limit.
    cubane = "C12C3C4C1C5C2C3C45"
    items = [encode(text, ["C"]) for text in (cubane, "CC") * 4]
    model = fitted(items, describe(items, "molecule", atom_types=["C"], bond_types=list(BOND_TYPES)), steps=60)
    assert Chem.CanonSmiles(cubane) in smiles_of(model.sample(40))
    assert model.sample(3, condition={"scaffold": "C1CCC1"}).accepted.all()


def test_atoms_have_no_more_bonds_than_in_training():
    # RDKit accepts six bonds of sulfur; here it has two.
    smiles = ["CSC", "CCSCC", "CSCC", "CCS"] * 2
    types = fit_vocabulary(smiles)
    items = [encode(text, types) for text in smiles]
    model = fitted(items, describe(items, "molecule", atom_types=types, bond_types=list(BOND_TYPES)), steps=1)
    assert dict(zip(types, model.valence.tolist(), strict=True)) == {"C": 2, "S": 2}
    for item in model.sample(50, temperature=5.0).items():
        assert all(atom.GetDegree() <= 2 for atom in Chem.MolFromSmiles(item.smiles).GetAtoms())
    with pytest.raises(ConfigError, match="more bonds at S"):
        model.sample(1, condition={"scaffold": "CS(C)=O".replace("O", "C")})
