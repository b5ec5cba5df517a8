"""What labelled synthetic windows are worth: do their labels hold, and can a classifier learn from them?"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_synth.downstream.base import scores
from lightning_synth.downstream.random_forest import RandomForest
from lightning_synth.features import is_vibration
from lightning_synth.metrics.distances import seeded
from lightning_synth.metrics.nulls import take
from lightning_synth.metrics.privacy import payload_hashes
from lightning_synth.metrics.spec import Schema
from lightning_synth.schema import labels

NAN = float("nan")
_TREES = 100
_KEPT = 4
_CACHE: OrderedDict[str, RandomForest] = OrderedDict()


def _forest(schema: Schema) -> RandomForest:
    """The judge of labels: it should know its classes well, so it sees values besides features."""
    series = schema["domain"] == "timeseries" and not is_vibration(schema)
    return RandomForest(schema, "all" if series else "auto", n_estimators=_TREES)


def classifier_of(items: Sequence[Any], schema: Schema, seed: int = 0) -> RandomForest:
    """Return a random forest trained on these items, trained at most once in a process for the same ones.

    Args:
        items: Labelled items.
        schema: Of the items.
        seed: Of the forest.
    """
    digest = hashlib.blake2b(digest_size=16)
    # Statistics and physics decide about the features, so they are part of the key.
    known = {
        name: schema.get(name) for name in ("num_classes", "sampling_rate", "bearing", "conditions", "mean", "std")
    }
    digest.update(repr(sorted(known.items(), key=lambda pair: pair[0])).encode())
    for part in (payload_hashes(items, schema), labels(items, schema)):
        digest.update(np.ascontiguousarray(part).tobytes())
    key = f"{digest.hexdigest()}-{seed}"
    if key not in _CACHE:
        _CACHE[key] = _forest(schema).fit(items, seed=seed)
    _CACHE.move_to_end(key)
    while len(_CACHE) > _KEPT:
        _CACHE.popitem(last=False)
    return _CACHE[key]


def class_adherence(real_train: Sequence[Any], synthetic: Sequence[Any], schema: Schema) -> dict[str, float]:
    """How often an independent classifier, trained on real items only, finds the label that was asked for (TRTS).

    Read it beside the same number for real test items: that is the ceiling, however low.

    Args:
        real_train: Labelled real training items.
        synthetic: Labelled synthetic items.
        schema: Of the items.

    Returns:
        `class_adherence`, the accuracy averaged over classes (so that it does not depend on how many were sampled of
        each), and `class_adherence_min`, that of the worst class. Empty for data without labels.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> class_adherence(tiny_series(48), tiny_series(24), tiny_series_schema())["class_adherence"]
        1.0
    """
    truth = labels(synthetic, schema) if schema.get("num_classes") else None
    if truth is None or labels(real_train, schema) is None:
        return {}
    predicted = classifier_of(real_train, schema).predict(synthetic)
    each = [float((predicted[truth == c] == c).mean()) for c in np.unique(truth)]
    return {"class_adherence": float(np.mean(each)), "class_adherence_min": min(each)}


def train_on_synthetic(
    real_train: Sequence[Any], real_test: Sequence[Any], synthetic: Sequence[Any], schema: Schema, seed: int = 0
) -> dict[str, float]:
    """Macro F1 on real test items of a random forest trained on synthetic items, and on as many real ones.

    Args:
        real_train: Labelled real training items.
        real_test: Labelled real test items.
        synthetic: Labelled synthetic items.
        schema: Of the items.
        seed: Of the forests and of the draw that makes both training sets equally large.

    Returns:
        `tstr` (train on synthetic, test on real), `trtr` (train on real, test on real) and `tstr_gap` = tstr - trtr.
        Empty for data without labels, NaN with one class in a training set.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> parts = [tiny_series(48, seed=seed) for seed in range(3)]
        >>> train_on_synthetic(*parts, tiny_series_schema())["tstr_gap"]
        0.0
    """
    found = [
        labels(items, schema) if schema.get("num_classes") else None for items in (real_train, real_test, synthetic)
    ]
    if any(y is None for y in found):
        return {}
    size = min(len(real_train), len(synthetic))
    result = {}
    for name, items, y in (("tstr", synthetic, found[2]), ("trtr", real_train, found[0])):
        index = np.sort(seeded(seed, "tstr", name).permutation(len(items))[:size])
        assert y is not None
        if len(np.unique(y[index])) < 2:
            result[name] = NAN
            continue
        forest = _forest(schema).fit(take(items, index), seed=seed)
        result[name] = scores(found[1], forest.predict(real_test), int(schema["num_classes"]))["macro_f1"]  # type: ignore[arg-type]
    return {**result, "tstr_gap": result["tstr"] - result["trtr"]}


def memorisation(train: Any, holdout: Any, synthetic: Any) -> dict[str, float]:
    """Are synthetic items nearer to training items than real items are that no generator saw?

    Args:
        train: (n, d) features of training items.
        holdout: (h, d) of real items not trained on.
        synthetic: (m, d).

    Returns:
        `memorisation_ratio`: median distance of a synthetic item to its nearest training item, over that of a holdout
        item; 1 without memorisation, 0 for copies. `below_first_percentile`: share of synthetic items nearer to train
        than 99 % of the holdout items are; .01 without memorisation.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> a, b = rng.normal(size=(200, 4)), rng.normal(size=(200, 4))
        >>> memorisation(a, b, a)
        {'memorisation_ratio': 0.0, 'below_first_percentile': 1.0}
    """
    from lightning_synth.metrics.distances import nearest

    if min(len(train), len(holdout), len(synthetic)) < 2:
        return {"memorisation_ratio": NAN, "below_first_percentile": NAN}
    own, other = nearest(synthetic, train)[0].ravel(), nearest(holdout, train)[0].ravel()
    return {
        "memorisation_ratio": float(np.median(own) / max(float(np.median(other)), 1e-300)),
        "below_first_percentile": float((own < np.quantile(other, 0.01)).mean()),
    }
