"""Reading, properties and metrics of molecules, in seconds of one processor and against RDKit alone."""

import time

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import QED, GraphDescriptors
from rdkit.Contrib.SA_Score import sascorer

from lightning_synth.metrics.molecule_facts import _CACHE, MoleculeSet
from lightning_synth.metrics.molecule_report import molecule_report
from lightning_synth.molecules import to_smiles
from lightning_synth.molecules.fragments import brics_fragments
from lightning_synth.molecules.properties import property_function
from lightning_synth.molecules.table import MoleculeItems, read_table

BONDS = ["SINGLE", "DOUBLE", "TRIPLE"]
METRICS = ["validity", "internal_diversity", "filters", "snn", "fragment_similarity", "scaffold_similarity"]
METRICS += ["property_distance", "kl_score", "wl_mmd"]


@pytest.fixture(scope="module")
def smiles(data_root):
    return (data_root / "molecules" / "zinc250k.smi").read_text().split()


def seconds(work):
    """Processor time of one call, and what it returned."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


@pytest.mark.benchmark
def test_reading_is_mostly_rdkit(smiles):
    part = smiles[:2000]
    # Imports are not what is measured.
    few = read_table(smiles[-5:])
    to_smiles(MoleculeItems(few, np.arange(5), few.names, BONDS), {"atom_types": few.names, "bond_types": BONDS})
    rdkit, _ = seconds(lambda: [Chem.MolToSmiles(Chem.MolFromSmiles(text)) for text in part])
    ours, table = seconds(lambda: read_table(part))
    items = MoleculeItems(table, np.arange(len(table)), table.names, BONDS)
    schema = {"atom_types": table.names, "bond_types": BONDS}
    back, _ = seconds(lambda: to_smiles(items, schema))
    print(f"2,000 molecules: parsing and writing {rdkit:.2f} s, to graphs {ours:.2f} s, back {back:.2f} s")
    assert ours < 4 * rdkit and back < 3 * rdkit


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("name", "ours", "theirs", "share"),
    [
        ("QED", property_function("qed"), QED.qed, 0.9),
        ("BertzCT", property_function("bertz"), GraphDescriptors.BertzCT, 0.8),
        ("SA", property_function("SA"), sascorer.calculateScore, 0.8),
        ("BRICS", brics_fragments, lambda mol: Chem.MolToSmiles(Chem.FragmentOnBRICSBonds(mol)).split("."), 0.9),
    ],
)
def test_faster_than_rdkits(smiles, name, ours, theirs, share):
    mols = [Chem.MolFromSmiles(text) for text in smiles[:1001]]
    spent = []
    for function in (ours, theirs):
        # RDKit keeps some of what it computes with the molecule; patterns are made at the first call.
        fresh = [Chem.Mol(mol) for mol in mols]
        function(fresh.pop())
        spent.append(seconds(lambda function=function, fresh=fresh: [function(mol) for mol in fresh])[0])
    print(f"{name} of 1,000 molecules: {spent[0]:.2f} s, RDKit {spent[1]:.2f} s")
    assert spent[0] < share * spent[1]


@pytest.mark.benchmark
@pytest.mark.slow
def test_ten_thousand_molecules(smiles):
    """Conversion of generated graphs, their properties and all metrics but the Frechet distance, on one core."""
    table = read_table(smiles[:30_000])
    schema = {"atom_types": table.names, "bond_types": BONDS}
    train, test = MoleculeSet(table.smiles[:10_000]), MoleculeSet(table.smiles[10_000:20_000])
    generated = MoleculeItems(table, np.arange(20_000, 30_000), table.names, BONDS)
    # What is known of the real molecules is computed once for all generators.
    for fact in ("compared", "guacamol", "morgan", "counts", "scaffold", "fragments"):
        test.column(fact)
    assert len(_CACHE["qed"]) >= 9_000
    options = {"schema": schema, "metrics": METRICS, "floor_repeats": 0}
    qed, _ = seconds(lambda: [QED.qed(Chem.MolFromSmiles(text)) for text in test.smiles[:1000]])
    spent, report = seconds(lambda: molecule_report(train, test, generated, **options))
    print(f"10,000 molecules: {spent:.1f} s of one processor, as long as RDKit's QED of {1000 * spent / qed:,.0f}")
    assert spent < 28 * qed and report.loc["valid", "value"] == 1
