"""Scores of generated molecules: validity, the MOSES and GuacaMol sets, kernels, judges; own code, offline.

Every comparison is free of stereochemistry on both sides: 64 % of the real molecules of ZINC250k would count as novel
if it were dropped on one side only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_synth.metrics.context_fid import frechet_distance
from lightning_synth.metrics.distances import Array, seeded
from lightning_synth.metrics.graph_judges import _DEFAULT_JUDGES, _FOLDS, _bound
from lightning_synth.metrics.molecule_facts import (
    _FEW_BINS,
    COMPARED,
    CONTINUOUS,
    COUNTED,
    MoleculeSet,
    has_chemnet,
    repaired_smiles,
    smiles_of,
)

NAN = float("nan")
#: Rows of one block of similarities; molecules whose pairwise similarities make the diversity.
_BLOCK, _PAIRED = 1000, 5000
#: From this similarity on a generated molecule counts as a copy with a change.
_CLOSE = 0.9
_GRID, _BINS, _TINY = 1000, 10, 1e-10


# -------------------------------------------------------------------------------------------------------- validity


def molecule_validity(
    generated: Any,
    train: Collection[str] = (),
    schema: Mapping[str, Any] | None = None,
    *,
    repaired: bool = True,
) -> dict[str, float]:
    """Validity as it is and after repair, uniqueness, novelty, and the share that is all three.

    Raw validity is the headline: what RDKit accepts as the generator made it, in one piece (in several where training
    molecules are: ``schema["several_fragments"]``).

    Args:
        generated: Graphs or SMILES.
        train: Canonical, stereo-free SMILES of the training molecules.
        schema: Of the graphs.
        repaired: Also repair what is invalid.

    Returns:
        `valid`, `valid_repaired` (share after `lightning_synth.molecules.repair`), `unique` (of the valid), `novel` (of
        the unique), `vun` (valid, unique and novel, of all).

    Example:
        >>> molecule_validity(["CCO", "OCC", "CCN", "C(("], ["CCN"], repaired=False)
        {'valid': 0.75, 'unique': 0.6666666666666666, 'novel': 0.5, 'vun': 0.25}
    """
    several = bool(schema and schema.get("several_fragments"))
    found = smiles_of(generated, schema)
    valid = [text for text in found if text and (several or "." not in text)]
    unique = set(valid)
    new = unique.difference(train)
    total = max(len(found), 1)
    scores = {"valid": len(valid) / total}
    if repaired:
        scores["valid_repaired"] = sum(text is not None for text in repaired_smiles(generated, schema, found)) / total
    return scores | {
        "unique": len(unique) / len(valid) if valid else NAN,
        "novel": len(new) / len(unique) if unique else NAN,
        "vun": len(new) / total,
    }


# ---------------------------------------------------------------------------------------------------- fingerprints


def _similarities(one: Array, other: Array) -> Iterable[Array]:
    """Tanimoto similarities of all pairs, block of rows after block."""
    total = other.sum(1)
    for start in range(0, len(one), _BLOCK):
        block = one[start : start + _BLOCK]
        both = block @ other.T
        either = block.sum(1)[:, None] + total - both
        np.maximum(either, 1, out=either)
        yield np.divide(both, either, out=both)


def nearest_similarity(query: MoleculeSet, reference: MoleculeSet) -> Array:
    """Tanimoto similarity of every molecule to the nearest one of a reference (Morgan, radius 2, 1024 bits).

    Args:
        query: Molecules.
        reference: To be near to.

    Returns:
        float (queries,).

    Example:
        >>> nearest_similarity(MoleculeSet(["CCO"]), MoleculeSet(["CCO", "c1ccccc1"])).tolist()
        [1.0]
    """
    if not len(query) or not len(reference):
        return np.full(len(query), NAN)
    bits = reference.bits()
    return np.concatenate([block.max(1) for block in _similarities(query.bits(), bits)]).astype(np.float64)


def internal_diversity(sample: MoleculeSet) -> float:
    """One minus the mean Tanimoto similarity of all pairs, a molecule with itself included (MOSES, IntDiv1).

    Args:
        sample: Molecules; of more than 5,000 as many, evenly spaced, are taken.

    Example:
        >>> internal_diversity(MoleculeSet(["CCO", "CCO"]))
        0.0
    """
    if not len(sample):
        return NAN
    rows = np.linspace(0, len(sample) - 1, min(len(sample), _PAIRED)).round().astype(int)
    bits = MoleculeSet([sample.smiles[i] for i in rows]).bits()
    return 1 - float(np.sum([block.sum(dtype=np.float64) for block in _similarities(bits, bits)])) / len(bits) ** 2


def similarity_to_nearest(reference: MoleculeSet, generated: MoleculeSet) -> float:
    """Mean similarity of generated molecules to their nearest reference molecule (MOSES, SNN).

    Args:
        reference: Held-out molecules.
        generated: Generated ones.
    """
    return float(nearest_similarity(generated, reference).mean()) if len(generated) else NAN


def train_similarity(train: MoleculeSet, generated: MoleculeSet) -> dict[str, float]:
    """How near generated molecules are to training ones; read it beside the same of held-out molecules.

    Args:
        train: Training molecules.
        generated: Generated ones.

    Returns:
        `train_similarity`, the mean to the nearest, and `train_near_copies`, the share at 0.9 or above.
    """
    near = nearest_similarity(generated, train)
    if not len(near):
        return {"train_similarity": NAN, "train_near_copies": NAN}
    return {"train_similarity": float(near.mean()), "train_near_copies": float((near >= _CLOSE).mean())}


# ---------------------------------------------------------------------------------------------------------- counts


def _cosine(one: Counter[str], other: Counter[str]) -> float:
    if not one or not other:
        return NAN
    dot = sum(count * other[name] for name, count in one.items())
    norms = [np.sqrt(sum(count**2 for count in counts.values())) for counts in (one, other)]
    return float(dot / (norms[0] * norms[1]))


def fragment_similarity(reference: MoleculeSet, generated: MoleculeSet) -> float:
    """Cosine of the counts of BRICS fragments (MOSES, Frag).

    Args:
        reference: Held-out molecules.
        generated: Generated ones.
    """
    one, other = (Counter(name for names in s.column("fragments") for name in names) for s in (reference, generated))
    return _cosine(one, other)


def scaffold_similarity(reference: MoleculeSet, generated: MoleculeSet) -> float:
    """Cosine of the counts of Bemis-Murcko scaffolds with two rings or more (MOSES, Scaf).

    Args:
        reference: Held-out molecules.
        generated: Generated ones.
    """
    one, other = (Counter(filter(None, s.column("scaffold"))) for s in (reference, generated))
    return _cosine(one, other)


def filter_share(sample: MoleculeSet, most: int = 500) -> float:
    """Share of molecules that pass: no PAINS pattern, no charge, no ring above seven, elements C N S O F Cl Br.

    The rules of MOSES but for its list of medicinal-chemistry patterns, which does not come with RDKit.

    Args:
        sample: Molecules.
        most: Evenly spaced ones that are looked at.
    """
    rows = np.linspace(0, len(sample) - 1, min(len(sample), most)).round().astype(int)
    return float(np.mean(MoleculeSet([sample.smiles[i] for i in rows]).column("passes"))) if len(sample) else NAN


# ------------------------------------------------------------------------------------------------------ properties


def property_distances(reference: MoleculeSet, generated: MoleculeSet) -> dict[str, float]:
    """Wasserstein-1 distances of logP, QED, SA, MW and TPSA, in units of the property.

    Args:
        reference: Held-out molecules.
        generated: Generated ones.

    Returns:
        `w1_logP` and so on.
    """
    from scipy.stats import wasserstein_distance

    one, other = reference.table("compared"), generated.table("compared")
    if not len(one) or not len(other):
        return {f"w1_{name}": NAN for name in COMPARED}
    return {f"w1_{name}": float(wasserstein_distance(one[:, i], other[:, i])) for i, name in enumerate(COMPARED)}


def kl_score(reference: MoleculeSet, generated: MoleculeSet) -> float:
    """Mean of exp(-KL) over ten distributions (GuacaMol, Brown et al. 2019, arXiv 1811.09621).

    BertzCT, logP, MW, TPSA, and the similarity to the nearest other molecule of the sample by kernel density on 1,000
    points; hydrogen bond acceptors and donors, rotatable bonds, aliphatic and aromatic rings by histograms of 10 bins.
    GuacaMol's similarity uses 4,096 bits, this one 1,024.

    Args:
        reference: Real molecules.
        generated: Generated ones.

    Returns:
        Between 0 and 1, higher is better; distributions that are a single point are left out.
    """
    if min(len(reference), len(generated)) < 3:
        return NAN
    one, other = reference.table("guacamol"), generated.table("guacamol")
    continuous = [(one[:, i], other[:, i]) for i in range(len(CONTINUOUS))]
    continuous.append((_own_nearest(reference), _own_nearest(generated)))
    counts = [(one[:, i], other[:, i]) for i in range(len(CONTINUOUS), len(CONTINUOUS) + len(COUNTED))]
    divergences = [_density_kl(p, q) for p, q in continuous] + [_count_kl(p, q) for p, q in counts]
    return float(np.nanmean(np.exp(-np.array(divergences))))


def _own_nearest(sample: MoleculeSet) -> Array:
    rows = np.linspace(0, len(sample) - 1, min(len(sample), _PAIRED)).round().astype(int)
    bits = MoleculeSet([sample.smiles[i] for i in rows]).bits()
    near = []
    for number, block in enumerate(_similarities(bits, bits)):
        local = np.arange(len(block))
        block[local, number * _BLOCK + local] = 0
        near.append(block.max(1))
    return np.concatenate(near).astype(np.float64)


def _density_kl(p: Array, q: Array) -> float:
    from scipy.stats import entropy, gaussian_kde

    if min(np.ptp(p), np.ptp(q)) < _TINY:
        return NAN
    points = np.linspace(min(p.min(), q.min()), max(p.max(), q.max()), _GRID)
    return float(entropy(gaussian_kde(p)(points) + _TINY, gaussian_kde(q)(points) + _TINY))


def _count_kl(p: Array, q: Array) -> float:
    from scipy.stats import entropy

    first, edges = np.histogram(p, bins=_BINS, density=True)
    with np.errstate(invalid="ignore"):
        second = np.nan_to_num(np.histogram(q, bins=edges, density=True)[0])
    return float(entropy(first + _TINY, second + _TINY))


# --------------------------------------------------------------------------------------------------- whole samples


def wl_mmd(reference: MoleculeSet, generated: MoleculeSet) -> float:
    """Squared maximum mean discrepancy of hashed Weisfeiler-Leman counts, a stand-in for NSPDK.

    Linear kernel on rows of length 1, biased as in the papers (diagonal included): the squared distance of the means.

    Args:
        reference: Held-out molecules.
        generated: Generated ones.
    """
    if not len(reference) or not len(generated):
        return NAN
    return float(np.square(reference.wl_counts().mean(0) - generated.wl_counts().mean(0)).sum())


def fcd(reference: MoleculeSet, generated: MoleculeSet) -> float:
    """Frechet ChemNet distance (Preuer et al. 2018, arXiv 1803.09518); compare values of one sample size only.

    Args:
        reference: Held-out molecules.
        generated: Generated ones.

    Returns:
        The distance; NaN without the package ``fcd_torch``, or with fewer than two molecules.
    """
    if not has_chemnet() or min(len(reference), len(generated)) < 2:
        return NAN
    return frechet_distance(reference.chemnet(), generated.chemnet())


def descriptor_discrepancy(
    reference: MoleculeSet, generated: MoleculeSet, *, seed: int = 0, most: int = 1000
) -> dict[str, float]:
    """What a classifier can tell apart: bound of the Jensen-Shannon distance by the best of several descriptors.

    The idea of PolyGraph (Krimmel et al. 2025) on molecules: descriptors of topology and Lipinski's kind, Morgan counts
    hashed to 128, ChemNet (if ``fcd_torch`` is there) projected to 128. Half of each sample chooses the descriptor by
    cross-validation, the other half gives the number.

    Args:
        reference: Held-out molecules.
        generated: Generated ones; of both, as many as the smaller has.
        seed: Of the halves and the projection.
        most: Molecules of each, at most.

    Returns:
        `discrepancy` and one value a descriptor; NaN with fewer than 8 molecules.
    """
    size = min(len(reference), len(generated), most)
    names = ("descriptors", "morgan", *(("chemnet",) if has_chemnet() else ()))
    if size < 2 * _FOLDS:
        return dict.fromkeys(("discrepancy", *(f"discrepancy_{name}" for name in names)), NAN)
    sides = [_reordered(sample, size, seed, part) for part, sample in enumerate((reference, generated))]
    tables = {name: [_family(side, name, seed) for side in sides] for name in names}
    found = {name: _bound(one, other, _DEFAULT_JUDGES) for name, (one, other) in tables.items()}
    best = max(found, key=lambda name: found[name][0])
    return {"discrepancy": found[best][1], **{f"discrepancy_{name}": found[name][1] for name in names}}


def _reordered(sample: MoleculeSet, size: int, seed: int, part: int) -> MoleculeSet:
    return MoleculeSet([sample.smiles[i] for i in seeded(seed, "halves", part).permutation(len(sample))[:size]])


def _family(sample: MoleculeSet, name: str, seed: int) -> Array:
    if name == "descriptors":
        return sample.table("descriptors")
    if name == "morgan":
        return np.asarray(sample.wl_counts().reshape(len(sample), -1, _FEW_BINS).sum(1))
    weight = seeded(seed, "projection").normal(size=(512, _FEW_BINS)) / np.sqrt(512)
    return np.asarray(sample.chemnet() @ weight)


#: Scores of a generated sample against a reference, by name; each gives one number or several.
TWO_SAMPLE: dict[str, Callable[[MoleculeSet, MoleculeSet], float | dict[str, float]]] = {
    "fcd": fcd,
    "snn": similarity_to_nearest,
    "fragment_similarity": fragment_similarity,
    "scaffold_similarity": scaffold_similarity,
    "property_distance": property_distances,
    "kl_score": kl_score,
    "wl_mmd": wl_mmd,
    "discrepancy": descriptor_discrepancy,
}

__all__: Sequence[str] = [
    "TWO_SAMPLE",
    "descriptor_discrepancy",
    "fcd",
    "filter_share",
    "fragment_similarity",
    "internal_diversity",
    "kl_score",
    "molecule_validity",
    "nearest_similarity",
    "property_distances",
    "scaffold_similarity",
    "similarity_to_nearest",
    "train_similarity",
    "wl_mmd",
]
