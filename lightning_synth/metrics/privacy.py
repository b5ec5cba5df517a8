"""Does the synthetic sample give away who was in the training data? Averages say too little, so tails come first.

Five per cent exact copies of 25 people leave the distance-to-closest-record share at .51 and the membership AUC at .52,
which both read as safe; the 1 % quantile of the neighbour distance ratio, the hash of the items and the true positive
rate at 1 % false positives see them at once. All functions need real items that the generator never saw (holdout).
None of this is a guarantee: only differential privacy bounds what an attack not tried here could find.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lightning_synth.metrics.distances import (
    Array,
    ArrayLike,
    as_features,
    as_pair,
    nearest,
    seeded,
    squared_distance_chunks,
)
from lightning_synth.metrics.spec import MetricSpec, Schema

NAN = float("nan")


def exact_copies(train: ArrayLike, synthetic: ArrayLike) -> dict[str, float]:
    """Share of synthetic rows that are exact copies of a training row.

    Args:
        train: (n,) hashes of items (`payload_hashes`), or (n, d) features, compared bit by bit.
        synthetic: (m,) or (m, d) alike.

    Returns:
        `exact_copy_rate` (share of synthetic rows), `copied_train_rate` (share of training rows given away) and
        `unique_rate` (distinct synthetic rows / m).

    Example:
        >>> exact_copies(np.array([1, 2, 3, 4]), np.array([4, 4, 5, 6]))
        {'exact_copy_rate': 0.5, 'copied_train_rate': 0.25, 'unique_rate': 0.75}
    """
    a, b = (np.asarray(v) if isinstance(v, np.ndarray) and v.ndim == 1 else as_features(v) for v in (train, synthetic))
    if min(len(a), len(b)) == 0:
        return {"exact_copy_rate": NAN, "copied_train_rate": NAN, "unique_rate": NAN}
    codes = np.unique(np.concatenate([a, b]), axis=0, return_inverse=True)[1].ravel()
    of_train, of_synthetic = codes[: len(a)], codes[len(a) :]
    return {
        "exact_copy_rate": float(np.isin(of_synthetic, of_train).mean()),
        "copied_train_rate": float(np.isin(of_train, of_synthetic).mean()),
        "unique_rate": len(np.unique(of_synthetic)) / len(b),
    }


def near_duplicates(
    train: ArrayLike, holdout: ArrayLike, synthetic: ArrayLike, *, fraction: float = 0.05
) -> dict[str, float]:
    """Share of synthetic rows much closer to a training row than real rows are to one another.

    Near means within `fraction` of the median distance from a holdout row to its nearest training row.

    Args:
        train: (n, d).
        holdout: (h, d) real rows that the generator never saw.
        synthetic: (m, d).
        fraction: How near.

    Returns:
        `near_duplicate_rate`, and the same against the holdout: `near_duplicate_rate_holdout`.

    Example:
        >>> near_duplicates([0.0, 1.0, 2.0], [0.4, 1.4, 2.4], [0.001, 0.5])
        {'near_duplicate_rate': 0.5, 'near_duplicate_rate_holdout': 0.0}
    """
    radius = fraction * float(np.median(nearest(holdout, train)[0]))
    return {
        "near_duplicate_rate": float((nearest(synthetic, train)[0] <= radius).mean()),
        "near_duplicate_rate_holdout": float((nearest(synthetic, holdout)[0] <= radius).mean()),
    }


def neighbour_distance_ratio(synthetic: ArrayLike, reference: ArrayLike) -> Array:
    """Distance to the nearest reference row over that to the second nearest, of every synthetic row.

    Args:
        synthetic: (m, d).
        reference: (n, d), n >= 2.

    Returns:
        (m,) ratios in [0, 1]; 0 for a copy, 1 where both are equally far (also where the reference is duplicated).

    Example:
        >>> neighbour_distance_ratio([0.0, 0.25], [0.0, 1.0]).round(2).tolist()
        [0.0, 0.33]
    """
    d = nearest(synthetic, reference, 2)[0]
    return np.divide(d[:, 0], d[:, 1], out=np.ones(len(d)), where=d[:, 1] > 0)


def nndr_tails(train: ArrayLike, holdout: ArrayLike, synthetic: ArrayLike, *, seed: int = 0) -> dict[str, float]:
    """Lower quantiles of the nearest-neighbour distance ratio to train and to as many holdout rows.

    Args:
        train: (n, d).
        holdout: (h, d) real rows that the generator never saw.
        synthetic: (m, d).
        seed: Seed of the draw that makes train and holdout equally large.

    Returns:
        `nndr_q01`, `nndr_q05` (to train), `nndr_q01_holdout`, `nndr_q05_holdout`, the gaps holdout - train
        `nndr_q01_gap`, `nndr_q05_gap` (0 without a leak) and `nndr_below_05`, the share of ratios below .05 to train
        less that to holdout.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> a, b = rng.normal(size=(200, 4)), rng.normal(size=(200, 4))
        >>> nndr_tails(a, b, a)["nndr_q01"], nndr_tails(a, b, a)["nndr_q01_gap"] > 0.2
        (0.0, True)
    """
    train, holdout = _equal_sizes(train, holdout, seed)
    result: dict[str, float] = {}
    ratios = {"": neighbour_distance_ratio(synthetic, train), "_holdout": neighbour_distance_ratio(synthetic, holdout)}
    for name, ratio in ratios.items():
        result[f"nndr_q01{name}"], result[f"nndr_q05{name}"] = (
            float(q) for q in np.quantile(ratio, [0.01, 0.05], method="weibull")
        )
    for q in ("nndr_q01", "nndr_q05"):
        result[f"{q}_gap"] = result[f"{q}_holdout"] - result[q]
    result["nndr_below_05"] = float((ratios[""] < 0.05).mean() - (ratios["_holdout"] < 0.05).mean())
    return result


def dcr_share(train: ArrayLike, holdout: ArrayLike, synthetic: ArrayLike, *, seed: int = 0) -> float:
    """Share of synthetic rows closer to a training row than to any of as many holdout rows; ties count half.

    Args:
        train: (n, d).
        holdout: (h, d) real rows that the generator never saw.
        synthetic: (m, d).
        seed: Seed of the draw that makes train and holdout equally large.

    Returns:
        .5 without a leak, 1 for copies. An average: it does not see a leak of a few people.

    Example:
        >>> dcr_share([0.0, 1.0], [5.0, 6.0], [0.1, 0.9, 5.1])
        0.6666666666666666
    """
    train, holdout = _equal_sizes(train, holdout, seed)
    to_train, to_holdout = nearest(synthetic, train)[0], nearest(synthetic, holdout)[0]
    return float((to_train < to_holdout).mean() + 0.5 * (to_train == to_holdout).mean())


def _equal_sizes(train: ArrayLike, holdout: ArrayLike, seed: int) -> tuple[Array, Array]:
    """Subsample the larger: the distance to the nearest of more rows is smaller for that reason alone."""
    a, b = as_pair(train, holdout)
    size = min(len(a), len(b))
    rng = seeded(seed, "equal sizes")
    return tuple(x if len(x) == size else x[np.sort(rng.permutation(len(x))[:size])] for x in (a, b))  # type: ignore[return-value]


def tpr_at_fpr(members: ArrayLike, non_members: ArrayLike, fpr: float = 0.01) -> float:
    """True positive rate of the attack "score above a threshold" at a false positive rate of at most `fpr`.

    Args:
        members: (n,) scores of training rows; higher means "was in the training data".
        non_members: (h,) scores of other rows.
        fpr: Largest share of non-members above the threshold.

    Returns:
        Share of members strictly above the threshold.

    Example:
        >>> tpr_at_fpr([3.0, 1.0], list(range(3)), fpr=0.0)
        0.5
    """
    ranked = np.sort(np.asarray(non_members, dtype=np.float64))[::-1]
    threshold = ranked[min(int(fpr * len(ranked)), len(ranked) - 1)]
    return float((np.asarray(members, dtype=np.float64) > threshold).mean())


def auc(members: ArrayLike, non_members: ArrayLike) -> float:
    """Probability that a member scores higher than a non-member, ties counting half (area under the ROC curve).

    Args:
        members: (n,) scores.
        non_members: (h,) scores.

    Returns:
        .5 for scores that tell nothing.

    Example:
        >>> auc([2.0, 3.0], [1.0, 2.0])
        0.875
    """
    a, b = np.asarray(members, dtype=np.float64), np.sort(np.asarray(non_members, dtype=np.float64))
    below = np.searchsorted(b, a, side="left") + np.searchsorted(b, a, side="right")
    return float(below.mean() / (2 * len(b)))


def membership_inference(
    train: ArrayLike, holdout: ArrayLike, synthetic: ArrayLike, *, seed: int = 0, fpr: float = 0.01
) -> dict[str, float]:
    """Membership inference from the synthetic sample alone: the strongest of three attacks.

    `distance`: minus the distance to the nearest synthetic row. `calibrated`: the same, against the distance to the
    nearest row of a real reference. `domias`: log density of the synthetic over that of the reference (kernel density,
    DOMIAS, van Breugel et al. 2023). The reference is half of the holdout, the other half are the non-members; then the
    halves swap, and both runs are averaged. No single attack dominates, so the maximum is what counts; its null is a
    little above .5 for that reason.

    Args:
        train: (n, d) members.
        holdout: (h, d) real rows that the generator never saw, h >= 4.
        synthetic: (m, d).
        seed: Seed of the halves.
        fpr: False positive rate at which the true positive rate is read.

    Returns:
        `mia_auc` and `mia_tpr_at_1fpr` (both maxima), and the single `mia_auc_<attack>`; NaN with too few rows.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> a, b = rng.normal(size=(200, 4)), rng.normal(size=(200, 4))
        >>> membership_inference(a, b, a)["mia_auc"]
        1.0
    """
    t, s = as_pair(train, synthetic)
    h = as_pair(train, holdout)[1]
    names = ("distance", "calibrated", "domias")
    if len(h) < 4 or min(len(t), len(s)) < 2:
        return {"mia_auc": NAN, "mia_tpr_at_1fpr": NAN, **{f"mia_auc_{name}": NAN for name in names}}
    members, others = (_attack_scores(x, s) for x in (t, h))
    order = seeded(seed, "membership halves").permutation(len(h))
    halves = order[: len(h) // 2], order[len(h) // 2 :]
    areas, rates = np.empty((2, 3)), np.empty((2, 3))
    for i, (reference, rest) in enumerate((halves, halves[::-1])):
        of_members, of_others = _attack_scores(t, h[reference]), _attack_scores(h[rest], h[reference])
        for j, (m, o) in enumerate(_attacks(members, others[rest], of_members, of_others)):
            areas[i, j], rates[i, j] = auc(m, o), tpr_at_fpr(m, o, fpr)
    area, rate = areas.mean(0), rates.mean(0)
    # The plain distance needs no reference: all of the holdout are its non-members.
    area[0] = auc(-members[:, 0], -others[:, 0])
    rate[0] = tpr_at_fpr(-members[:, 0], -others[:, 0], fpr)
    single = {f"mia_auc_{name}": float(value) for name, value in zip(names, area, strict=True)}
    return {"mia_auc": float(area.max()), "mia_tpr_at_1fpr": float(rate.max()), **single}


def _attack_scores(x: Array, sample: Array) -> Array:
    """Distance to the nearest sample row and log kernel density, (n, 2); Scott's bandwidth."""
    scale = max(float(sample.std(0).mean()), 1e-12)
    bandwidth = scale * len(sample) ** (-1 / (sample.shape[1] + 4))
    distance = nearest(x, sample)[0][:, 0]
    density = np.empty(len(x))
    for rows, d2 in squared_distance_chunks(x, sample):
        density[rows] = torch.logsumexp(-d2 / (2 * bandwidth**2), 1).numpy()
    # Constants of normalisation matter: synthetic sample and reference differ in size and spread.
    density -= np.log(len(sample)) + x.shape[1] * np.log(bandwidth)
    return np.stack([distance, density], 1)


def _attacks(
    members: Array, others: Array, members_reference: Array, others_reference: Array
) -> list[tuple[Array, Array]]:
    """Scores of members and non-members under the three attacks."""
    pairs = ((members, members_reference), (others, others_reference))
    tiny = np.finfo(np.float64).tiny
    distance = tuple(-a[:, 0] for a, _ in pairs)
    calibrated = tuple(np.log(np.maximum(b[:, 0], tiny)) - np.log(np.maximum(a[:, 0], tiny)) for a, b in pairs)
    domias = tuple(a[:, 1] - b[:, 1] for a, b in pairs)
    return [(scores[0], scores[1]) for scores in (distance, calibrated, domias)]


def payload_hashes(items: Sequence[Any], schema: Schema) -> npt.NDArray[np.uint64]:
    """Hash what items contain, without labels and conditions: a copy under another label is still a copy.

    Args:
        items: Items of the schema's domain.
        schema: What an item is.

    Returns:
        (n,) uint64, equal for equal content.

    Example:
        >>> a, b = ({"x": torch.zeros(1, 4), "y": torch.tensor(label)} for label in (0, 1))
        >>> len(set(payload_hashes([a, b], {"domain": "timeseries"}).tolist()))
        1
    """
    from lightning_synth import schema as schemas
    from lightning_synth.items import StackedItems

    payload = {"timeseries": "x", "sequence": "item_id"}.get(schema["domain"])
    content: Any
    if isinstance(items, StackedItems) and payload in items.tensors:
        content = StackedItems({payload: items.tensors[payload]})
    elif payload is not None:
        content = [{payload: item[payload]} for item in items]
    else:
        content = [_without_labels(item) for item in items]
    return np.asarray(schemas.item_hashes(content, schema), dtype=np.uint64)


def _without_labels(graph: Any) -> Any:
    """A shallow copy of a PyG graph without target and text; of a molecule its SMILES, whatever the order of atoms."""
    if graph.get("smiles"):
        return type(graph)(smiles=graph.smiles, num_nodes=graph.num_nodes)
    graph = copy.copy(graph)
    for name in ("y", "smiles"):
        if name in graph:
            del graph[name]
    return graph


def _copies(train: Any, _holdout: Any, synthetic: Any, _schema: Schema, _seed: int) -> dict[str, float]:
    return exact_copies(train, synthetic)


def _near(train: Any, holdout: Any, synthetic: Any, _schema: Schema, _seed: int) -> dict[str, float]:
    return {"near_duplicate_rate": near_duplicates(train, holdout, synthetic)["near_duplicate_rate"]}


def _tails(train: Any, holdout: Any, synthetic: Any, _schema: Schema, seed: int) -> dict[str, float]:
    tails = nndr_tails(train, holdout, synthetic, seed=seed)
    return {name: tails[name] for name in ("nndr_q01", "nndr_q05", "nndr_q01_gap", "nndr_below_05")}


def _share(train: Any, holdout: Any, synthetic: Any, _schema: Schema, seed: int) -> dict[str, float]:
    return {"dcr_share": dcr_share(train, holdout, synthetic, seed=seed)}


def _membership(train: Any, holdout: Any, synthetic: Any, _schema: Schema, seed: int) -> dict[str, float]:
    result = membership_inference(train, holdout, synthetic, seed=seed)
    return {name: result[name] for name in ("mia_auc", "mia_tpr_at_1fpr")}


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("exact_copies", _copies, False, inputs="hashes", null="threeway", directions={"unique_rate": True}),
    MetricSpec("near_duplicates", _near, False, inputs="features", null="threeway"),
    MetricSpec(
        "nndr_tails", _tails, False, inputs="features", null="threeway", directions={"nndr_q01": True, "nndr_q05": True}
    ),
    MetricSpec("dcr_share", _share, False, inputs="features", null="threeway"),
    MetricSpec("membership_inference", _membership, False, inputs="features", null="threeway"),
)
