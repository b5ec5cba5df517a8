"""MoleculeFlow: exact at the end, exact scaffolds, real guidance, edits near their start, and no silent repair."""

import networkx as nx
import pytest
import torch
from rdkit import Chem
from torch_geometric.data import Batch

from lightning_synth.constraints import Connected
from lightning_synth.datamodules import ItemsDataModule
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.graphs import DenseGraphs
from lightning_synth.molecules.conditioning import property_loss
from lightning_synth.molecules.representation import encode, fit_vocabulary, to_smiles
from lightning_synth.plugins.graph.graph_transformer import Pairs
from lightning_synth.plugins.molecule.molecule_flow import MoleculeFlow
from lightning_synth.plugins.molecule.molecule_flow_parts import PropertyHead, SizeLaw, ValenceFeatures, connected
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe
from lightning_synth.testing.case import quiet, quiet_trainer

SMALL = {"num_layers": 2, "d_node": 32, "d_edge": 16, "d_graph": 32, "heads": 4, "rrwp_steps": 6}
BONDS = ["SINGLE", "DOUBLE", "TRIPLE"]
#: Chains of three to six atoms with none to three oxygens, rings, and one of everything that QM9 has.
SMILES = [
    *("CCC", "CCO", "OCO", "CCCC", "CCCO", "OCCO", "COCO", "CCCCC", "CCCCO", "OCCCO", "OCC(O)O", "CCOCC", "CC(C)CO"),
    *("CCCCCC", "CCCCCO", "OCCCCO", "OCC(O)CO", "CC(C)(C)CO", "C1CC1", "C1CCC1", "C1CO1", "CC1CC1", "OC1CCC1"),
    *("C=CC", "CC=O", "O=CC=O", "C#CC", "CC#N", "C[NH3+]", "CC(=O)[O-]", "c1ccco1", "C[N+](=O)[O-]"),
]


def properties(smiles):
    return [Chem.MolFromSmiles(smiles).GetNumAtoms(), smiles.upper().count("O")]


@pytest.fixture(scope="module")
def data():
    types = fit_vocabulary(SMILES)
    items = [encode(smiles, types, y=properties(smiles)) for smiles in SMILES]
    schema = describe(items, "molecule", atom_types=types, bond_types=BONDS, property_names=["atoms", "oxygens"])
    return ItemsDataModule(items * 4, schema=schema, domain="molecule", batch_size=32)


@pytest.fixture(scope="module")
def fitted(data):
    model = MoleculeFlow(**SMALL, lr=5e-3, ema_decay=0.98)
    with quiet():
        quiet_trainer(max_steps=400).fit(model, data)
    return model


@pytest.fixture
def untrained(data):
    return make(data)


def oxygens(samples):
    return sum(smiles.upper().count("O") for smiles in samples.data.smiles)


def make(data, **options):
    model = MoleculeFlow(schema=data.schema, **{**SMALL, "num_steps": 6, **options})
    model.is_fitted = True
    return model


def test_an_oracle_reconstructs_the_data(data):
    """Time runs from noise to data, and the last step shows the prediction: elsewhere one of the two went wrong."""
    items = [encode(smiles, data.schema) for smiles in ("OCCCO", "CC(C)CO", "c1ccco1", "CCCCC")]
    dense = DenseGraphs.from_batch(Batch.from_data_list(items))
    for num_steps in (1, 3, 20):
        model = make(data, num_steps=num_steps)

        def oracle(x, e, t, pairs, condition, belief=None, model=model):
            nodes = torch.nn.functional.one_hot(dense.x, model.node_types)
            edges = torch.nn.functional.one_hot(pairs.at_upper(dense.e), model.edge_types)
            return 100.0 * nodes, 100.0 * edges

        model.denoise = oracle
        assert model.sample(4, seed=0, num_nodes=5).data.smiles == [item.smiles for item in items]


def test_nothing_is_repaired(untrained):
    samples = untrained.sample(60, seed=0)
    items = samples.items()
    again = to_smiles(items, untrained.schema)
    assert [item.smiles or None for item in items] == again
    assert 0 < sum(smiles is None for smiles in again) < 60


@pytest.mark.slow
def test_training_makes_molecules(fitted):
    smiles = fitted.sample(200, seed=0).data.smiles
    whole = [s for s in smiles if s and "." not in s]
    assert len(whole) > 140 and len(set(whole)) > 20


@pytest.mark.slow
def test_sizes_and_atoms_follow_the_condition(fitted):
    for atoms in (3, 6):
        sizes = fitted.sample(40, condition={"atoms": atoms}, seed=1).data.ptr.diff().float()
        assert sizes.mean().item() == pytest.approx(atoms, abs=0.4)
    asked = [{"oxygens": k, "atoms": 5} for k in (0, 1, 2)]
    found = [oxygens(fitted.sample(60, condition=condition, seed=2)) for condition in asked]
    assert found[0] + 10 < found[1] < found[2] - 10


@pytest.mark.slow
def test_guidance_scales(fitted):
    free = fitted.sample(20, condition={}, seed=3).data
    ignored = fitted.sample(20, condition={"oxygens": 3.0, "atoms": 6.0}, seed=3, guidance_scale=0.0).data
    assert torch.equal(free.x, ignored.x) and torch.equal(free.edge_index, ignored.edge_index)
    plain, guided = (
        oxygens(fitted.sample(60, condition={"oxygens": 2}, seed=4, guidance_scale=scale)) for scale in (0.0, 2.0)
    )
    assert guided > plain + 20


def test_guidance_needs_a_null_condition(data):
    model = make(data, condition_dropout=0.0)
    with pytest.raises(ConfigError, match="never trained"):
        model.sample(2, condition={"oxygens": 1}, guidance_scale=2.0)
    with pytest.raises(ConfigError, match="never trained"):
        make(data, condition_dropout=0.0, guidance_scale=0.0)
    with pytest.raises(ConfigError, match="never trained"):
        model.sample(2, condition={})
    assert len(model.sample(2, condition={"oxygens": 1})) == 2


# Best of k -----------------------------------------------------------------------------------------------------------


def test_the_property_head_tells_properties(data):
    """Sums over atoms and bonds are what it is made for: it learns them in seconds."""
    torch.manual_seed(0)
    head = PropertyHead(data.schema, 32, properties=2)
    graphs = DenseGraphs.from_batch(Batch.from_data_list(list(data.train_items())))
    y = torch.cat([item.y for item in data.train_items()])
    target = (y - y.mean(0)) / y.std(0)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(150):
        loss = property_loss(head(graphs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.06
    order = torch.randperm(graphs.x.shape[1])
    moved = DenseGraphs(graphs.x[:, order], graphs.e[:, order][:, :, order], graphs.mask[:, order])
    assert torch.allclose(head(moved), head(graphs), atol=1e-4)


def test_best_of_keeps_the_candidate_that_the_head_prefers(data):
    model = make(data)
    head = torch.nn.Module()
    # A head that sees the truth.
    head.forward = lambda graphs: model.condition.standardised({"atoms": graphs.mask.sum(1).float()}, len(graphs))
    model.head = head
    asked = {"atoms": 4.0}
    one, two, six = (model.sample(60, condition=asked, seed=4, best_of=k) for k in (1, 2, 6))
    assert not one.score and (six.score["best_of"] == 6).all()
    distance = (six.data.ptr.diff() - 4).abs() / model.condition.stats[1, 0]
    valid = torch.tensor([bool(s) for s in six.data.smiles])
    assert torch.allclose(six.score["predicted_distance"][valid], distance[valid], atol=1e-5)
    assert six.score["predicted_distance"][~valid].isnan().all() and valid.sum() > 30
    # The two candidates are among the six.
    before, after = (samples.score["predicted_distance"].nan_to_num(nan=9.0) for samples in (two, six))
    assert (after <= before).all() and (after < before).sum() > 10
    requests = model.make_requests(5, condition=asked, seed=4)
    alone = [model.sample(requests[i : i + 1], best_of=3).data.smiles[0] for i in range(5)]
    assert alone == model.sample(requests, best_of=3).data.smiles


@pytest.mark.slow
def test_best_of_comes_nearer(fitted):
    def error(samples):
        valid = [s for s in samples.data.smiles if s]
        return sum(abs(s.upper().count("O") - 2) for s in valid) / len(valid)

    one, best = (fitted.sample(80, condition={"oxygens": 2.0}, seed=4, best_of=k) for k in (1, 6))
    assert error(best) < 0.7 * error(one)


def test_best_of_needs_a_property_and_a_head(data, untrained):
    with pytest.raises(ConfigError, match="ask for at least one"):
        untrained.sample(2, condition={}, best_of=2)
    with pytest.raises(ConfigError, match="property_weight above 0"):
        make(data, property_weight=0.0).sample(2, condition={"atoms": 4}, best_of=2)
    with pytest.raises(ConfigError, match="best_of=0"):
        untrained.sample(2, best_of=0)
    with pytest.raises(ConfigError, match="property_weight"):
        MoleculeFlow(property_weight=-1.0)


def test_best_of_holds_for_scaffolds_and_edits(untrained):
    asked = {"atoms": 5.0, "scaffold": "C1CC1"}
    grown = untrained.sample(6, condition=asked, seed=0, best_of=2)
    edited = untrained.optimise(["CC1CC1"] * 6, asked, strength=1.0, best_of=2)
    for samples in (grown, edited):
        assert set(samples.score) == {"best_of", "predicted_distance", "has_scaffold"}
        assert samples.score["has_scaffold"].tolist() == [float(bool(s)) for s in samples.data.smiles]


# Scaffolds -----------------------------------------------------------------------------------------------------------


def bonds(item, size):
    """Bonds among the first atoms, and how many go out from each of them."""
    (row, col), kind = item.edge_index, item.edge_attr
    inside = {(int(i), int(j), int(k)) for i, j, k in zip(row, col, kind, strict=True) if i < j < size}
    out = torch.bincount(row[(row < size) & (col >= size)], minlength=size)
    return inside, out.tolist()


@pytest.mark.parametrize("smiles", ["OCC", "C1CC1", "C=O", "C#C"])
def test_scaffolds_are_contained_even_by_an_untrained_network(untrained, smiles):
    scaffold = encode(smiles, untrained.schema)
    items = untrained.sample(30, condition={"scaffold": smiles}, seed=0, eta=5.0).items()
    assert all(torch.equal(item.x[: len(scaffold.x)], scaffold.x) for item in items)
    assert all(bonds(item, len(scaffold.x))[0] == bonds(scaffold, len(scaffold.x))[0] for item in items)
    assert min(item.num_nodes for item in items) > scaffold.num_nodes


@pytest.mark.slow
def test_scaffolds_are_found_by_substructure_match(fitted):
    for smiles in ("C1CC1", "OCC", "[*]C1CCC1"):
        pattern = Chem.MolFromSmiles(smiles.replace("[*]", ""))
        samples = fitted.sample(30, condition={"scaffold": smiles}, seed=1)
        found = [Chem.MolFromSmiles(s) if s else None for s in samples.data.smiles]
        has = [mol is not None and mol.HasSubstructMatch(pattern) for mol in found]
        assert samples.score["has_scaffold"].tolist() == has
        assert sum(has) > 10 and all(contains or mol is None for contains, mol in zip(has, found, strict=True))


def test_a_scaffold_grows_at_its_attachment_points_only(untrained):
    for item in untrained.sample(30, condition={"scaffold": "[*]CC([*])C"}, seed=0).items():
        out = bonds(item, 3)[1]
        assert sorted(out) == [0, 1, 1]
    # Carbonyl oxygen has no valence left.
    for item in untrained.sample(30, condition={"scaffold": "C=O"}, seed=0).items():
        assert bonds(item, 2)[1][untrained.schema["atom_types"].index("O") == item.x[:2].tolist()[1]] == 0


def test_every_row_has_its_own_scaffold(untrained):
    asked = ["C1CC1", "", "OCO"]
    together = untrained.sample(3, condition={"scaffold": asked}, seed=5).data.smiles
    requests = untrained.make_requests(3, condition={"scaffold": asked}, seed=5)
    assert together == [untrained.sample(requests[i : i + 1]).data.smiles[0] for i in range(3)]


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ("CCCCCC", "no attachment room"),
        ("[*]C([*])([*])CC[*]", "no attachment room"),
        ("c1cccs1", "atom type 'S'"),
        ("C1CC", "not a SMILES"),
    ],
)
def test_impossible_scaffolds_are_refused(untrained, smiles, message):
    with pytest.raises(ConfigError, match=message):
        untrained.sample(2, condition={"scaffold": smiles})


def test_a_scaffold_and_a_size_must_agree(untrained):
    with pytest.raises(ConfigError, match="needs molecules of at least 4 atoms, got 3"):
        untrained.sample(2, condition={"scaffold": "CCO"}, num_nodes=3)


# Editing -------------------------------------------------------------------------------------------------------------


def test_no_strength_returns_the_input(untrained):
    given = ["OCC(O)CO", "C1CC1", "C[N+](=O)[O-]"]
    assert untrained.optimise(given, strength=0.0).data.smiles == [Chem.CanonSmiles(s) for s in given]


@pytest.mark.slow
def test_edits_are_closer_the_weaker_they_are(fitted):
    given, start = ["CCCCCO"] * 60, DenseGraphs.from_batch(Batch.from_data_list([encode("CCCCCO", fitted.schema)]))
    kept = []
    for strength in (0.1, 0.4, 1.0):
        edited = DenseGraphs.from_batch(fitted.optimise(given, {"atoms": 6}, strength=strength, seed=0).data)
        kept.append(float((edited.e == start.e)[start.pairs.expand_as(edited.e)].float().mean()))
    assert 0.9 < kept[0] and kept[0] - 0.03 > kept[1] > kept[2] + 0.03
    assert set(fitted.optimise(given, strength=1.0).data.ptr.diff().tolist()) == {6}


@pytest.mark.slow
def test_edits_follow_the_target(fitted):
    given = ["CCCCC"] * 60
    none, two = (oxygens(fitted.optimise(given, {"oxygens": k}, strength=0.8, seed=0)) for k in (0, 2))
    assert two > none + 30


@pytest.mark.parametrize(("smiles", "scaffold"), [("CCC1CC1", "C1CC1"), ("OCC(=O)C", "C=O"), ("CC(C)CO", "[*]CO")])
def test_edits_keep_the_scaffold_where_it_is(untrained, smiles, scaffold):
    start = encode(smiles, untrained.schema)
    pattern = Chem.MolFromSmiles(scaffold.replace("[*]", ""))
    place = Chem.MolFromSmiles(start.smiles).GetSubstructMatch(pattern)
    given = DenseGraphs.from_batch(Batch.from_data_list([start]))
    samples = untrained.optimise([smiles] * 40, {"scaffold": scaffold}, strength=1.0, seed=0, eta=5.0)
    edited = DenseGraphs.from_batch(samples.data)
    assert (edited.x[:, place] == given.x[:, place]).all()
    assert (edited.e[:, place][:, :, place] == given.e[:, place][:, :, place]).all()
    assert (edited.e[:, place] == given.e[:, place]).all() == ("[*]" in scaffold)
    assert (edited.x != given.x).any() and (edited.e != given.e).any()
    found = [bool(s) and Chem.MolFromSmiles(s).HasSubstructMatch(pattern) for s in samples.data.smiles]
    assert samples.score["has_scaffold"].tolist() == found


@pytest.mark.slow
def test_edits_with_a_scaffold_follow_the_target(fitted):
    none, two = (
        fitted.optimise(["CCC1CC1"] * 60, {"oxygens": k, "scaffold": "C1CC1"}, strength=1.0, seed=0) for k in (0, 2)
    )
    assert oxygens(two) > oxygens(none) + 15
    for samples in (none, two):
        assert samples.score["has_scaffold"].tolist() == [float(bool(s)) for s in samples.data.smiles]


def test_only_some_rows_keep_a_scaffold(untrained):
    both = untrained.optimise(["CC1CC1", "OCCO"], {"scaffold": ["C1CC1", ""]}, strength=1.0, seed=3)
    other = untrained.optimise(["CC1CC1", "OCCO"], {"scaffold": ["", ""]}, strength=1.0, seed=3)
    assert both.data.smiles[1] == other.data.smiles[1] and both.score["has_scaffold"].shape == (2,)


def test_bad_edits_are_refused(untrained):
    with pytest.raises(ConfigError, match="strength must lie"):
        untrained.optimise(["CCO"], strength=1.5)
    with pytest.raises(ConfigError, match="'CCO' does not contain the scaffold 'C1CC1'"):
        untrained.optimise(["CC1CC1", "CCO"], {"scaffold": "C1CC1"})
    with pytest.raises(ConfigError, match="all its other bonds at the attachment points"):
        untrained.optimise(["CC1CC1C"], {"scaffold": "[*]C1CC1"})
    with pytest.raises(ConfigError, match="has 7 atoms"):
        untrained.optimise(["CCCCCCC"])
    with pytest.raises(DataError, match="'S'"):
        untrained.optimise(["CCS"])
    with pytest.raises(ConfigError, match="list of molecules"):
        untrained.optimise("CCO")
    with pytest.raises(DataError, match="cannot read"):
        untrained.optimise(["C1CC"])


# Parts ---------------------------------------------------------------------------------------------------------------


def test_valence_features_have_known_values():
    schema = {"atom_types": ["C", "O", "N+1"], "bond_types": BONDS}
    features = ValenceFeatures(schema, 3)
    # C=O beside a lone N+: two bonds are left at carbon, none at oxygen, four at nitrogen.
    mask = torch.ones(1, 3, dtype=torch.bool)
    pairs, x = Pairs(mask), torch.tensor([[0, 1, 2]])
    e = torch.tensor([2, 0, 0])
    belief = torch.nn.functional.one_hot(x, 3).float(), torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    nodes, edges, graph = features(x, e, pairs, belief)
    assert (nodes.shape[-1], edges.shape[-1], graph.shape[-1]) == features.sizes
    used, free, over, full, believed_used, believed_free, part = nodes[0, :, -7:].T
    assert used.tolist() == [0.5, 0.5, 0] and free.tolist() == [0.5, 0, 1]
    assert over.tolist() == [0, 0, 0] and full.tolist() == [0, 1, 0]
    assert believed_used.tolist() == [0.25, 0.25, 0] and believed_free.tolist() == [0.75, 0.25, 1]
    assert torch.allclose(part, torch.tensor([2, 2, 1]) / 3) and edges[:, -1].tolist() == [1, 0, 0]
    assert torch.allclose(graph[0, -6:], torch.tensor([1 / 3, 0, 2, 1 / 3, 1 / 3, 1 / 3]))


def test_connected_agrees_with_networkx():
    network = nx.gnp_random_graph(12, 0.12, seed=3)
    adjacency = torch.tensor(nx.to_numpy_array(network)).bool()[None]
    found = connected(adjacency, torch.ones(1, 12, dtype=torch.bool))[0]
    expected = torch.zeros(12, 12, dtype=torch.bool)
    for part in nx.connected_components(network):
        expected[tuple(torch.meshgrid(*[torch.tensor(sorted(part))] * 2, indexing="ij"))] = True
    assert torch.equal(found, expected) and not expected.all()


def test_the_network_is_equivariant(data):
    model = make(data)
    for parameter in model.network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    dense = DenseGraphs.from_batch(Batch.from_data_list([encode("OCC(O)C=O", data.schema)]))
    pairs, order = Pairs(dense.mask), torch.tensor([3, 0, 5, 1, 4, 2])
    t, condition = torch.tensor([0.4]), torch.zeros(1, 32)
    with torch.no_grad():
        nodes, edges = model.denoise(dense.x, pairs.at_upper(dense.e), t, pairs, condition)
        moved = dense.e[:, order][:, :, order]
        there = model.denoise(dense.x[:, order], pairs.at_upper(moved), t, pairs, condition)
    assert torch.allclose(there[0], nodes[:, order], atol=1e-4)
    assert torch.allclose(pairs.dense(there[1]), pairs.dense(edges)[:, order][:, :, order], atol=1e-4)


def test_without_conditions_sizes_are_those_of_training():
    law = SizeLaw({"max_nodes": 6, "node_counts": {"3": 30, "5": 10}}, dim=0)
    n = 4000
    sizes = law.draw(law(torch.zeros(n, 8)), torch.ones(n), KeyedRNG(torch.arange(n)))
    assert set(sizes.tolist()) == {3, 5} and (sizes == 3).float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert set(law.draw(law(torch.zeros(9, 8)), torch.full((9,), 4), KeyedRNG(torch.arange(9))).tolist()) == {5}


@pytest.mark.slow
def test_classes_are_conditions(data):
    items = [item.clone() for item in data.train_items()]
    for item in items:
        item.label = torch.tensor([int("O" in item.smiles.upper())])
    keys = ("atom_types", "bond_types", "property_names")
    known = {key: data.schema.get(key, ["atoms", "oxygens"]) for key in keys}
    model = MoleculeFlow(**SMALL, lr=3e-3)
    with quiet():
        labelled = ItemsDataModule(items, schema=describe(items, "molecule", **known), domain="molecule", batch_size=32)
        quiet_trainer(max_steps=80).fit(model, labelled)
    share = [
        sum("O" in s.upper() for s in model.sample(60, condition={"label": k}, seed=0).data.smiles) for k in (0, 1)
    ]
    assert share[0] + 12 < share[1]


def test_texts_are_conditions(data, untrained):
    items = [item.clone() for item in data.train_items()]
    for item in items:
        item.text = "an alcohol" if "O" in item.smiles else "a hydrocarbon"
    keys = {"atom_types": data.schema["atom_types"], "bond_types": BONDS}
    model = MoleculeFlow(schema=describe(items, "molecule", property_names=["atoms", "oxygens"], **keys), **SMALL)
    model.is_fitted = True
    told = model.losses(Batch.from_data_list(items[:8]), KeyedRNG(0))["loss"]
    for item in items:
        item.text = ""
    assert told != model.losses(Batch.from_data_list(items[:8]), KeyedRNG(0))["loss"]
    one, same, other = (
        model.embed_requests(model.make_requests(2, condition={"text": text}))[0]
        for text in ("an alcohol", "an alcohol", "a hydrocarbon")
    )
    assert torch.equal(one, same) and not torch.allclose(one, other)
    assert len(model.sample(2, condition={"text": "an alcohol"}, num_steps=2)) == 2
    with pytest.raises(ConfigError, match="no descriptions"):
        untrained.sample(2, condition={"text": "an alcohol"})


def test_constraints_hold_as_well(untrained):
    samples = untrained.sample(20, seed=0, constraint=Connected())
    assert all("." not in s for s in samples.data.smiles)
