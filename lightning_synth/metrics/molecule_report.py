"""Tables for generated molecules, every row beside what it cannot beat: real molecules, retrieval, no condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.metrics.distances import Array, seeded
from lightning_synth.metrics.molecule_facts import MoleculeSet, smiles_of
from lightning_synth.metrics.molecule_scores import (
    TWO_SAMPLE,
    filter_share,
    internal_diversity,
    molecule_validity,
    train_similarity,
)
from lightning_synth.molecules.properties import compute_properties

if TYPE_CHECKING:
    import pandas as pd

#: Training molecules that nearness to training is measured on.
_TRAIN = 10_000
_HIGHER = frozenset(
    {
        "valid",
        "valid_repaired",
        "unique",
        "novel",
        "vun",
        "snn",
        "fragment_similarity",
        "scaffold_similarity",
        "kl_score",
    }
)
_NEITHER = frozenset({"internal_diversity", "filters", "train_similarity", "train_near_copies"})
_ROWS = ("validity", "internal_diversity", "filters", "train_similarity", *TWO_SAMPLE)


def molecule_report(
    train: Any,
    test: Any,
    generated: Any,
    *,
    schema: Mapping[str, Any] | None = None,
    metrics: Sequence[str] | None = None,
    count: int | None = None,
    floor_repeats: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Score generated molecules beside real ones at the same sample count.

    The column `real` scores training molecules in the place of generated ones: what a perfect generator reaches at
    that count (the Frechet ChemNet distance of MOSES' test set to itself is 0.25 at 10,000 and 0.09 at 25,000
    molecules). For validity, novelty and the nearness to training the held-out molecules take that place.

    Args:
        train: Training graphs or SMILES.
        test: Held-out graphs or SMILES, compared with.
        generated: Generated graphs or SMILES.
        schema: Of the graphs.
        metrics: Of ``validity``, ``internal_diversity``, ``filters``, ``train_similarity`` and the names of
            `lightning_synth.metrics.molecule_scores.TWO_SAMPLE`; None for all.
        count: Generated molecules scored, and real ones they are compared with; None for as many as both have.
        floor_repeats: Draws of training molecules for `real`.
        seed: Of the draws.

    Returns:
        Columns `value`, `real`, `real_sd`, `better` (``higher``, ``lower`` or empty); ``attrs`` holds the counts.

    Raises:
        DataError: If a sample is empty.
        ConfigError: If a metric is unknown.

    Example:
        >>> parts = (["CCO", "CCN", "CCC"], ["CCCO", "CCCN", "CC"], ["CCO", "CCCl", "C(("])
        >>> table = molecule_report(*parts, metrics=["validity", "snn"])
        >>> round(float(table.loc["valid", "value"]), 2), float(table.loc["valid", "real"])
        (0.67, 1.0)
    """
    import pandas as pd

    names = tuple(_ROWS if metrics is None else metrics)
    if unknown := [name for name in names if name not in _ROWS]:
        raise ConfigError(f"unknown metric {unknown[0]!r}; known: {', '.join(_ROWS)}")
    if not (len(train) and len(test) and len(generated)):
        raise DataError(f"{len(train)} training, {len(test)} test, {len(generated)} generated molecules: all need some")
    real_train, real_test = MoleculeSet.of(train, schema), MoleculeSet.of(test, schema)
    size = min(count or len(generated), len(generated), len(real_test))
    made = _first(generated, size)
    reference = real_test.draw(size, seed, "reference")
    value = _scores(names, real_train, reference, made, schema, seed)
    floors = []
    for repeat in range(floor_repeats):
        stand_in = real_train.draw(size, seed, "floor", repeat)
        floor = _scores(names, real_train, reference, stand_in.smiles, schema, seed)
        floors.append(floor | _membership(names, real_train, reference.smiles, schema, seed))
    table = pd.DataFrame({"value": value}, index=pd.Index(list(value), name="metric"))
    rows = pd.DataFrame(floors, columns=list(value), dtype=float)
    table["real"], table["real_sd"] = rows.mean(), rows.std()
    table["better"] = ["higher" if n in _HIGHER else "" if n in _NEITHER else "lower" for n in table.index]
    table.attrs = {"num_train": len(train), "num_test": len(test), "num_generated": len(generated), "count": size}
    return table


def _first(generated: Any, size: int) -> list[Any]:
    items = generated.to_data_list() if hasattr(generated, "to_data_list") else generated
    items = items.items() if callable(getattr(items, "items", None)) else items
    return [items[i] for i in range(size)]


def _scores(
    names: Sequence[str], train: MoleculeSet, reference: MoleculeSet, made: Any, schema: Any, seed: int
) -> dict[str, float]:
    sample = MoleculeSet.of(made, schema)
    scores = _membership(names, train, made, schema, seed) if "validity" in names else {}
    if "internal_diversity" in names:
        scores["internal_diversity"] = internal_diversity(sample)
    if "filters" in names:
        scores["filters"] = filter_share(sample)
    for name, function in TWO_SAMPLE.items():
        if name in names:
            found = function(reference, sample)
            scores |= found if isinstance(found, dict) else {name: found}
    return scores | _membership([name for name in names if name != "validity"], train, made, schema, seed)


def _membership(names: Sequence[str], train: MoleculeSet, made: Any, schema: Any, seed: int) -> dict[str, float]:
    """Scores that ask whether a molecule is a training molecule."""
    scores: dict[str, float] = {}
    if "validity" in names:
        scores |= molecule_validity(made, set(train.smiles), schema)
    if "train_similarity" in names:
        scores |= train_similarity(train.draw(_TRAIN, seed, "train"), MoleculeSet.of(made, schema))
    return scores


# -------------------------------------------------------------------------------------------------- conditional


def conditional_report(
    requested: Mapping[str, Any],
    generated: Any,
    train: Any,
    *,
    unconditional: Any = None,
    schema: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare asked-for with obtained properties, beside retrieval and no condition at all.

    All properties are computed by RDKit, so real molecules have no error. `retrieval` answers every request with the
    training molecule that is nearest in the requested properties (standardised): a conditional generator that loses
    to it on every property is not worth its training. `unconditional` molecules were made without the request.

    Args:
        requested: Property (`lightning_synth.molecules.properties.PROPERTIES`) to the value asked for, (requests,).
        generated: One graph or SMILES a request; invalid ones count against `coverage` only.
        train: Training graphs or SMILES.
        unconditional: Graphs or SMILES; None deals the training molecules out at random.
        schema: Of the graphs.
        seed: Of the random training molecules.

    Returns:
        Index (method, property); columns `mae`, `spearman`, `coverage` (share of requests with a valid molecule).

    Raises:
        DataError: If the numbers of requests and molecules differ.

    Example:
        >>> table = conditional_report({"heavy_atoms": [2, 3]}, ["CC", "CCO"], ["C", "CCCC", "CC"])
        >>> float(table.loc[("generated", "heavy_atoms"), "mae"])
        0.0
    """
    import pandas as pd

    names = list(requested)
    asked = np.stack([np.asarray(requested[name], dtype=np.float64) for name in names], 1)
    answers = smiles_of(generated, schema)
    if len(answers) != len(asked):
        raise DataError(f"{len(asked)} requests, but {len(answers)} generated molecules")
    known = MoleculeSet.of(train, schema).smiles
    table = compute_properties(known, names)
    spread = np.maximum(table.std(0), 1e-12)
    retrieved = [known[int(np.square((table - row) / spread).sum(1).argmin())] for row in asked]
    if unconditional is None:
        free: list[str | None] = [known[i] for i in seeded(seed, "unconditional").integers(len(known), size=len(asked))]
    else:
        free = smiles_of(unconditional, schema)[: len(asked)]
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for method, smiles in (("generated", answers), ("retrieval", retrieved), ("unconditional", free)):
        rows |= {(method, name): row for name, row in _errors(asked, smiles, names).items()}
    result = pd.DataFrame.from_dict(rows, orient="index")
    result.index = pd.MultiIndex.from_tuples(list(rows), names=["method", "property"])
    return result


def _errors(asked: Array, smiles: Sequence[str | None], names: Sequence[str]) -> dict[str, dict[str, float]]:
    from scipy.stats import spearmanr

    valid = [i for i, text in enumerate(smiles) if text]
    got = compute_properties([smiles[i] or "" for i in valid], names)
    out = {}
    for i, name in enumerate(names):
        one, other = asked[valid, i], got[:, i]
        varies = len(one) > 2 and np.ptp(one) > 0 and np.ptp(other) > 0
        out[name] = {
            "mae": float(np.abs(one - other).mean()) if len(one) else float("nan"),
            "spearman": float(spearmanr(one, other).statistic) if varies else float("nan"),
            "coverage": len(valid) / max(len(smiles), 1),
        }
    return out


# ---------------------------------------------------------------------------------------------------------- text


def text_report(
    generated: Any,
    reference: Any,
    captions: Sequence[str] | None = None,
    train: tuple[Sequence[str], Any] | None = None,
    *,
    schema: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Score molecules generated from descriptions, beside the molecule of the nearest training description.

    Args:
        generated: One graph or SMILES a description.
        reference: The described molecules.
        captions: The descriptions, for the row `retrieval`.
        train: Training descriptions and their molecules, for the row `retrieval`.
        schema: Of the graphs.

    Returns:
        Rows `generated` and `retrieval` (nearest by TF-IDF of words); columns `valid`, `exact` (equal without
        stereochemistry, of all), `morgan`, `maccs`, `rdk` (mean Tanimoto over the valid).

    Raises:
        DataError: If the numbers of molecules differ.

    Example:
        >>> table = text_report(["CCO"], ["OCC"], ["an alcohol"], (["an alcohol", "an amine"], ["CO", "CN"]))
        >>> table["exact"].tolist()
        [1.0, 0.0]
    """
    import pandas as pd

    truth = smiles_of(reference, schema)
    answers = {"generated": smiles_of(generated, schema)}
    if captions is not None and train is not None:
        nearest = nearest_texts(captions, train[0])
        known = smiles_of(train[1], schema)
        answers["retrieval"] = [known[i] for i in nearest]
    for name, smiles in answers.items():
        if len(smiles) != len(truth):
            raise DataError(f"{len(truth)} reference molecules, but {len(smiles)} of {name}")
    return pd.DataFrame.from_dict({name: _text_scores(s, truth) for name, s in answers.items()}, orient="index")


def nearest_texts(queries: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """Find the known text that is nearest to each query, by cosine of TF-IDF over words and pairs of words.

    Args:
        queries: Texts.
        known: Texts to choose from.

    Returns:
        int64 (queries,).

    Example:
        >>> nearest_texts(["a red fish"], ["a blue bird", "one red fish"]).tolist()
        [1]
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"[^\s.,;]+")
    table = vectorizer.fit_transform(known)
    found = vectorizer.transform(queries)
    parts = [(found[start : start + 256] @ table.T).toarray().argmax(1) for start in range(0, found.shape[0], 256)]
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)


def _text_scores(smiles: Sequence[str | None], truth: Sequence[str | None]) -> dict[str, float]:
    from rdkit import Chem, DataStructs
    from rdkit.Chem import rdFingerprintGenerator, rdMolDescriptors

    pairs = [(one, other) for one, other in zip(smiles, truth, strict=True) if one and other]
    mols = [(Chem.MolFromSmiles(one), Chem.MolFromSmiles(other)) for one, other in pairs]
    morgan = rdFingerprintGenerator.GetMorganGenerator(2)
    prints = {
        "morgan": morgan.GetFingerprint,
        "maccs": rdMolDescriptors.GetMACCSKeysFingerprint,
        "rdk": Chem.RDKFingerprint,
    }
    scores = {
        "valid": float(np.mean([bool(text) for text in smiles])),
        "exact": sum(one == other for one, other in pairs) / max(len(truth), 1),
    }
    for name, function in prints.items():
        values = [
            # RDKit calls two empty fingerprints (of single atoms) unlike.
            1.0 if text == other_text else DataStructs.TanimotoSimilarity(function(one), function(other))
            for (text, other_text), (one, other) in zip(pairs, mols, strict=True)
        ]
        scores[name] = float(np.mean(values)) if values else float("nan")
    return scores


__all__ = ["conditional_report", "molecule_report", "nearest_texts", "text_report"]
