"""Metrics of molecules: known answers, invariance to the order of atoms, floors beside every number."""

import numpy as np
import pytest
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator

import lightning_synth as ls
from lightning_synth.datamodules import MoleculeDataModule
from lightning_synth.errors import ConfigError, DataError, MissingExtraError
from lightning_synth.metrics import molecule_facts
from lightning_synth.metrics.molecule import (
    METRICS,
    MoleculeSet,
    conditional_report,
    descriptor_discrepancy,
    fcd,
    filter_share,
    fragment_similarity,
    internal_diversity,
    kl_score,
    molecule_report,
    molecule_validity,
    nearest_similarity,
    nearest_texts,
    property_distances,
    scaffold_similarity,
    similarity_to_nearest,
    text_report,
    train_similarity,
    wl_mmd,
)
from lightning_synth.molecules import encode
from lightning_synth.schema import describe

TYPES = {"atom_types": ["C", "O", "N"], "bond_types": ["SINGLE", "DOUBLE", "TRIPLE"]}
CHAINS = MoleculeSet([f"{'C' * n}{end}" for n in range(2, 12) for end in ("O", "N", "", "C(C)C")])
RINGS = MoleculeSet([f"{'C' * n}{ring}" for n in range(1, 11) for ring in ("c1ccccc1", "C1CC1", "c1ccncc1", "C1CCOC1")])


def broken():
    item = encode("CC(C)(C)C", TYPES)
    item.edge_attr[:] = 1
    return item


def test_validity_is_raw_and_repair_is_counted_apart():
    items = [encode(text, TYPES) for text in ("CCO", "OCC", "CCN", "CC.O")] + [broken()]
    scores = molecule_validity(items, {"CCN"}, TYPES)
    assert scores["valid"] == 0.6 and scores["valid_repaired"] == 1.0
    assert scores["unique"] == pytest.approx(2 / 3) and scores["novel"] == 0.5 and scores["vun"] == 0.2
    assert molecule_validity(items, {"CCN"}, {**TYPES, "several_fragments": True})["valid"] == 0.8


def test_smiles_carried_by_an_item_do_not_count():
    item = broken()
    item.smiles = "CCO"
    assert molecule_validity([item], (), TYPES)["valid"] == 0.0


def test_novelty_is_free_of_stereo_on_both_sides():
    assert molecule_validity(["C[C@H](F)Cl"], {"CC(F)Cl"})["novel"] == 0.0


def test_similarities_are_those_of_rdkit():
    generator = rdFingerprintGenerator.GetMorganGenerator(2, fpSize=1024)
    prints = [[generator.GetFingerprint(Chem.MolFromSmiles(t)) for t in s.smiles] for s in (CHAINS, RINGS)]
    expected = [max(DataStructs.BulkTanimotoSimilarity(one, prints[1])) for one in prints[0]]
    assert nearest_similarity(CHAINS, RINGS) == pytest.approx(expected, abs=1e-6)
    pairs = np.mean([DataStructs.BulkTanimotoSimilarity(one, prints[0]) for one in prints[0]])
    assert internal_diversity(CHAINS) == pytest.approx(1 - pairs, abs=1e-6)
    assert similarity_to_nearest(RINGS, CHAINS) == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_sample_equals_itself():
    assert similarity_to_nearest(RINGS, RINGS) == pytest.approx(1)
    assert train_similarity(RINGS, RINGS) == {"train_similarity": pytest.approx(1), "train_near_copies": 1.0}
    assert fragment_similarity(RINGS, RINGS) == pytest.approx(1) and wl_mmd(RINGS, RINGS) == 0
    assert kl_score(RINGS, RINGS) == pytest.approx(1) and not any(property_distances(RINGS, RINGS).values())
    assert descriptor_discrepancy(RINGS, RINGS)["discrepancy"] < 0.3


def test_other_molecules_are_far():
    assert kl_score(RINGS, CHAINS) < 0.7 and wl_mmd(RINGS, CHAINS) > 0.05
    assert descriptor_discrepancy(RINGS, CHAINS)["discrepancy"] > 0.6
    assert fragment_similarity(RINGS, CHAINS) < 0.3


def test_scaffolds_have_two_rings_or_more():
    biphenyl, naphthalene = "CCc1ccc(-c2ccccc2)cc1", "CCc1cccc2ccccc12"
    one = MoleculeSet([biphenyl, naphthalene, "Cc1ccccc1"])
    assert scaffold_similarity(one, MoleculeSet([biphenyl, "CCCc1ccccc1"])) == pytest.approx(1 / np.sqrt(2))
    assert np.isnan(scaffold_similarity(one, RINGS))


def test_property_distances_are_in_units_of_the_property():
    one, other = MoleculeSet(["CC", "CCC"]), MoleculeSet(["CCC", "CCCC"])
    assert property_distances(one, other)["w1_MW"] == pytest.approx(14.027, abs=1e-3)


@pytest.mark.parametrize(
    ("smiles", "passes"),
    [("CCO", 1), ("CC[NH3+]", 0), ("C1CCCCCCC1", 0), ("C[Si](C)C", 0), ("O=C1NC(=S)SC1=Cc1ccccc1", 0)],
)
def test_filters(smiles, passes):
    assert filter_share(MoleculeSet([smiles])) == passes


def test_frechet_chemnet_distance():
    pytest.importorskip("fcd_torch")
    assert fcd(CHAINS, CHAINS) == pytest.approx(0, abs=1e-6) and fcd(CHAINS, RINGS) > 5


def test_without_its_package_the_distance_is_missing_and_says_what_to_install(monkeypatch):
    monkeypatch.setattr(molecule_facts.importlib.util, "find_spec", lambda name: None)
    molecule_facts._chemnet.cache_clear()
    assert np.isnan(fcd(CHAINS, RINGS))
    with pytest.raises(MissingExtraError, match="pip install fcd_torch"):
        MoleculeSet(["CCCCCCCCCCCCCN"]).chemnet()


def test_nothing_valid_is_missing_and_no_error():
    empty = MoleculeSet([])
    for spec in METRICS:
        row = spec.compute([encode("CC", TYPES)], [encode("CC", TYPES)], [broken()], TYPES, 0)
        assert all(np.isnan(value) or 0 <= value <= 1 for value in row.values()), (spec.name, row)
    assert np.isnan(internal_diversity(empty)) and np.isnan(kl_score(empty, RINGS))


# Tables --------------------------------------------------------------------------------------------------------------


def test_the_report_puts_real_molecules_beside_every_row():
    table = molecule_report(CHAINS.smiles[::2], CHAINS.smiles[1::2], [*RINGS.smiles[:15], *["C("] * 5])
    assert table.attrs["count"] == 20 and list(table.columns) == ["value", "real", "real_sd", "better"]
    assert table.loc["valid", "value"] == 0.75 and table.loc["valid", "real"] == 1.0
    for row in ("w1_logP", "w1_qed", "wl_mmd"):
        assert table.loc[row, "value"] > table.loc[row, "real"] and table.loc[row, "better"] == "lower"
    for row in ("snn", "kl_score"):
        assert table.loc[row, "value"] < table.loc[row, "real"] and table.loc[row, "better"] == "higher"
    assert table.loc["train_similarity", "real"] == pytest.approx(
        nearest_similarity(MoleculeSet(CHAINS.smiles[1::2]), MoleculeSet(CHAINS.smiles[::2])).mean()
    )


def test_the_report_refuses():
    with pytest.raises(ConfigError, match="unknown metric 'nspdk'"):
        molecule_report(["C"], ["C"], ["C"], metrics=["nspdk"])
    with pytest.raises(DataError, match="0 generated molecules"):
        molecule_report(["C"], ["C"], [])


def test_conditional_report():
    train = CHAINS.smiles
    asked = {"heavy_atoms": np.arange(4.0, 14.0), "logP": np.linspace(0, 4, 10)}
    perfect = ["C" * n for n in range(4, 13)]
    table = conditional_report(asked, [*perfect, "C(("], train)
    made, free = (table.loc[(name, "heavy_atoms")] for name in ("generated", "unconditional"))
    assert made["mae"] == 0 and made["spearman"] == pytest.approx(1) and made["coverage"] == 0.9
    assert table.loc[("retrieval", "heavy_atoms"), "mae"] < free["mae"] and free["coverage"] == 1
    with pytest.raises(DataError, match="10 requests, but 9 generated"):
        conditional_report(asked, perfect, train)


def test_text_report():
    captions = ["an alcohol with two carbons", "an aromatic ring"]
    known = (["a ring that is aromatic", "alcohol of two carbons"], ["c1ccccc1", "CCO"])
    table = text_report(["CCO", None], ["OCC", "Cc1ccccc1"], captions, known)
    assert table.loc["generated"].tolist() == [0.5, 0.5, 1, 1, 1]
    assert table.loc["retrieval", "valid"] == 1 and table.loc["retrieval", "exact"] == 0.5
    assert nearest_texts(captions, known[0]).tolist() == [1, 0]
    with pytest.raises(DataError, match="2 reference molecules, but 1 of generated"):
        text_report(["CCO"], ["CCO", "C"])


# evaluate ------------------------------------------------------------------------------------------------------------


def test_evaluate_flags_copies_and_passes_real_molecules():
    smiles = [
        f"{'C' * n}{end}{'C' * m}" for n in range(1, 7) for m in range(1, 7) for end in ("O", "N", "C(=O)", "CC#C")
    ]
    data = MoleculeDataModule(smiles, "random", fractions=(0.4, 0.1, 0.5), duplicates="drop", unknown="raise")
    names = ["molecule_validity", "property_distance", "train_similarity", "snn"]
    with pytest.warns(UserWarning, match="occur again"):
        copies = ls.evaluate(data.train_items(), data, metrics=names, floors=False).table
    assert copies.loc["valid", "value"] == 1 and copies.loc["novel", "value"] == 0
    assert copies.loc["novel", "real_vs_real"] == 1 and copies.loc["train_similarity", "verdict"] == "above real"
    real = ls.evaluate(data.val_items()[:], data, metrics=["property_distance", "snn"], floors=False).table
    assert real.loc["w1_MW", "verdict"] == "within noise"


def test_copies_in_another_order_of_atoms_are_copies():
    items = [encode(text, TYPES) for text in CHAINS.smiles]
    train, test = items[::2], items[1::2]
    schema = describe(train, "molecule", **TYPES)
    data = ls.datamodules.ItemsDataModule(train, [], test, domain="molecule", schema=schema)
    model = ls.get_generator("smiles_enumeration")().fit_on(train, schema)
    table = ls.evaluate(model.sample(20), data, metrics=["exact_copies"], floors=False).table
    assert table.loc["exact_copy_rate", "value"] == 1
