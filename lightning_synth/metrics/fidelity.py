"""Do synthetic samples follow the law of the real ones? Distances of laws on features, numpy in and floats out."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.metrics.distances import Array, ArrayLike, as_pair, seeded, squared_distance_chunks

Depth = Literal["mahalanobis", "spatial", "projection"]


def hellinger(real: ArrayLike, synthetic: ArrayLike, bins: int | None = None) -> Array:
    """Hellinger distance of every feature, from histograms with common bins.

    H(P, Q) = sqrt(1 - sum_k sqrt(p_k q_k)), 0 for equal and 1 for disjoint laws. Two samples of one law do not score 0:
    E[H^2] is about (K - 1) (1/n + 1/m) / 8 for K bins, e.g. H = .39 at n = m = 100, K = 50. Read it beside its null.

    Args:
        real: (n, d).
        synthetic: (m, d).
        bins: Equal-width bins over the pooled range; default K = min(50, sqrt(min(n, m))).

    Returns:
        (d,) distances in [0, 1].

    Example:
        >>> hellinger([[0.0], [1.0]], [[0.0], [1.0]]).tolist()
        [0.0]
    """
    r, s = as_pair(real, synthetic)
    k = bins or max(2, min(50, int(np.sqrt(min(len(r), len(s))))))
    low = np.minimum(r.min(0), s.min(0))
    width = np.maximum(np.maximum(r.max(0), s.max(0)) - low, 1e-300)
    p, q = _histograms(r, low, width, k), _histograms(s, low, width, k)
    return np.asarray(np.sqrt(np.maximum(0.0, 1 - np.sqrt(p * q).sum(1))))


def _histograms(values: Array, low: Array, width: Array, k: int) -> Array:
    """Relative frequencies (d, k) of k equal bins per feature."""
    d = values.shape[1]
    cell = np.minimum(((values - low) / width * k).astype(np.int64), k - 1) + k * np.arange(d)
    return np.asarray(np.bincount(cell.ravel(), minlength=d * k).reshape(d, k) / len(values))


def gaussian_hellinger(real: ArrayLike, synthetic: ArrayLike, *, shrink: bool = True) -> float:
    """Joint Hellinger distance of the Gaussians fitted to two samples (closed form).

    H^2 = 1 - det(A)^(1/4) det(B)^(1/4) / det((A+B)/2)^(1/2) exp(-(a-b)' ((A+B)/2)^-1 (a-b) / 8).

    Args:
        real: (n, d).
        synthetic: (m, d).
        shrink: Ledoit-Wolf covariances (needed where n is not much larger than d).

    Returns:
        Distance in [0, 1].

    Example:
        >>> gaussian_hellinger([[0.0], [1.0], [2.0]], [[0.0], [1.0], [2.0]])
        0.0
    """
    r, s = as_pair(real, synthetic)
    a, b = _covariance(r, shrink), _covariance(s, shrink)
    # Directions constant in both samples have zero variance in both: a common floor makes them count as equal.
    floor = 1e-9 * max(float(np.trace(a) + np.trace(b)) / len(a), 1e-12) * np.eye(len(a))
    a, b = a + floor, b + floor
    mid, gap = (a + b) / 2, r.mean(0) - s.mean(0)
    log_det = [np.linalg.slogdet(m)[1] for m in (a, b, mid)]
    log_overlap = (log_det[0] + log_det[1]) / 4 - log_det[2] / 2 - gap @ np.linalg.solve(mid, gap) / 8
    return float(np.sqrt(max(0.0, -np.expm1(log_overlap))))


def _covariance(values: Array, shrink: bool = True) -> Array:
    """Covariance (d, d), by default shrunk by the rule of Ledoit and Wolf (2004)."""
    if shrink and values.shape[1] > 1:
        from sklearn.covariance import ledoit_wolf

        return np.asarray(ledoit_wolf(values)[0])
    return np.atleast_2d(np.cov(values.T, bias=True))


def pairwise_correlation_difference(real: ArrayLike, synthetic: ArrayLike) -> float:
    """Pairwise correlation difference ||Corr(R) - Corr(S)||_F (Goncalves et al. 2020).

    Two samples of one law with independent features score about sqrt(2 d (d - 1) / n), e.g. 1.31 for d = 10, n = 100.
    A feature that is constant counts as uncorrelated with all others.

    Args:
        real: (n, d).
        synthetic: (m, d).

    Returns:
        Frobenius norm of the difference.

    Example:
        >>> x = [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
        >>> round(pairwise_correlation_difference(x, [[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]]), 3)
        2.828
    """
    r, s = as_pair(real, synthetic)
    return float(np.linalg.norm(_correlation(r) - _correlation(s)))


def _correlation(values: Array) -> Array:
    """Correlations (d, d) with 0 where a feature is constant, 1 on the diagonal."""
    z = values - values.mean(0)
    norm = np.linalg.norm(z, axis=0)
    z = z / np.where(norm > 0, norm, 1.0)
    correlation = z.T @ z
    np.fill_diagonal(correlation, 1.0)
    return np.asarray(correlation)


def depth(
    points: ArrayLike, sample: ArrayLike, kind: Depth = "mahalanobis", *, seed: int = 0, directions: int = 200
) -> Array:
    """How central points are in a sample: near 1 (or 1/2..1) at its centre, towards 0 far out.

    - mahalanobis: 1 / (1 + d^2), d the Mahalanobis distance (Ledoit-Wolf covariance).
    - spatial: 1 - || mean of unit vectors from the sample to the point ||.
    - projection: 1 / (1 + max over directions of |u'z - median| / MAD), over random directions.

    Args:
        points: (p, d).
        sample: (n, d).
        kind: Which depth.
        seed: Seed of the random directions.
        directions: How many of them (for d = 1 one is enough, and one is used).

    Returns:
        (p,) depths in [0, 1].

    Raises:
        ConfigError: If the kind is unknown.

    Example:
        >>> depth([[0.0], [1.0]], [[-1.0], [1.0]]).round(2).tolist()
        [1.0, 0.5]
    """
    z, x = as_pair(points, sample)
    if kind == "mahalanobis":
        return _mahalanobis_depth(z, x)
    if kind == "spatial":
        return _spatial_depth(z, x)
    if kind == "projection":
        return _projection_depth(z, x, seed, directions)
    raise ConfigError(f"depth {kind!r} is not one of mahalanobis, spatial, projection")


def _mahalanobis_depth(z: Array, x: Array) -> Array:
    covariance = _covariance(x)
    covariance = covariance + 1e-9 * max(float(np.trace(covariance)) / len(covariance), 1e-12) * np.eye(len(covariance))
    factor = np.linalg.cholesky(covariance)
    white = np.linalg.solve(factor, (z - x.mean(0)).T)
    return np.asarray(1 / (1 + np.square(white).sum(0)))


def _spatial_depth(z: Array, x: Array) -> Array:
    # Single precision is enough for a mean of unit vectors; centring keeps z mean(w) - mean(w x) from cancelling.
    centre = x.mean(0)
    sample, points = (torch.as_tensor(a - centre, dtype=torch.float32) for a in (x, z))
    result = np.empty(len(z))
    for rows, d2 in squared_distance_chunks(z, x):
        # mean_i (z - x_i)/|z - x_i| = z mean(w) - mean(w x), with w = 1/|z - x_i| and 0 for a point itself.
        # Rounding leaves about 1e-14 instead of 0 for equal points, so anything below 1e-10 counts as equal.
        w = torch.where(d2 > 1e-10, d2, torch.inf).float().rsqrt_()
        mean = (points[rows] * w.sum(1, keepdim=True) - w @ sample) / len(x)
        result[rows] = 1 - mean.norm(dim=1).numpy()
    return result


def _projection_depth(z: Array, x: Array, seed: int, directions: int) -> Array:
    d = x.shape[1]
    u = np.ones((1, 1)) if d == 1 else seeded(seed, "projection depth").normal(size=(directions, d))
    u = u / np.linalg.norm(u, axis=1, keepdims=True)
    projected = x @ u.T
    median = np.median(projected, 0)
    deviation = np.median(np.abs(projected - median), 0)
    outlying = np.abs(z @ u.T - median) / np.maximum(deviation, 1e-12)
    return np.asarray(1 / (1 + outlying.max(1)))


def dd_plot_r2(real: ArrayLike, synthetic: ArrayLike, kind: Depth = "mahalanobis", *, seed: int = 0) -> float:
    """R2 of the depth-depth plot against the identity line, 1 - SSE/SST (Liu, Parelius and Singh 1999).

    For every point of the pooled sample, its depth in the synthetic sample is predicted by its depth in the real one.
    The usual R2 of a free line is blind to scale (.91 for doubled synthetic data); against the identity it is -.28.

    Args:
        real: (n, d).
        synthetic: (m, d).
        kind: Depth, see `depth`.
        seed: Seed of the random directions of the projection depth.

    Returns:
        1 for equal laws (.98 at n = 1000, d = 4), 0 and below for different ones.

    Example:
        >>> dd_plot_r2([[0.0], [1.0], [2.0]], [[0.0], [1.0], [2.0]])
        1.0
    """
    r, s = as_pair(real, synthetic)
    pooled = np.concatenate([r, s])
    of_real, of_synthetic = (depth(pooled, sample, kind, seed=seed) for sample in (r, s))
    total = np.square(of_synthetic - of_synthetic.mean()).sum()
    if total == 0:
        return 1.0 if np.array_equal(of_real, of_synthetic) else float("-inf")
    return float(1 - np.square(of_real - of_synthetic).sum() / total)


def classifier_two_sample(
    real: ArrayLike,
    synthetic: ArrayLike,
    *,
    seed: int = 0,
    folds: int = 3,
    real_groups: ArrayLike | None = None,
    synthetic_groups: ArrayLike | None = None,
    max_iter: int = 30,
) -> dict[str, float]:
    """Classifier two-sample test: cross-validated AUC of telling synthetic from real (Lopez-Paz and Oquab 2017).

    Two families, because each is blind to something: real data rounded to one decimal gives a linear AUC of .51 and a
    tree AUC of .99. The larger counts. Exact copies of the training data score .5 as well: read it with the copy rate.

    Args:
        real: (n, d).
        synthetic: (m, d).
        seed: Seed of folds and classifiers.
        folds: Folds of the stratified cross-validation.
        real_groups: (n,) entity of every real row; rows of an entity stay in one fold (windows of one recording).
        synthetic_groups: (m,) the same for synthetic rows; default: each row its own.
        max_iter: Boosting iterations.

    Returns:
        `c2st_auc` (the larger), `c2st_auc_linear`, `c2st_auc_trees`; NaN with fewer than 2 rows a fold.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> auc = classifier_two_sample(rng.normal(size=200), rng.normal(size=200) + 5)
        >>> auc["c2st_auc"] > 0.99
        True
    """
    r, s = as_pair(real, synthetic)
    if min(len(r), len(s)) < 2 * folds:
        return dict.fromkeys(("c2st_auc", "c2st_auc_linear", "c2st_auc_trees"), float("nan"))
    x, y = np.concatenate([r, s]), np.repeat([0, 1], [len(r), len(s)])
    splits = _folds(x, y, _groups(r, s, real_groups, synthetic_groups), folds, seed)
    linear = _mean_auc(x, y, splits, _linear)
    trees = _mean_auc(x, y, splits, lambda: _trees(seed, max_iter, len(x)))
    return {"c2st_auc": max(linear, trees), "c2st_auc_linear": linear, "c2st_auc_trees": trees}


def _groups(
    real: Array, synthetic: Array, g_real: ArrayLike | None, g_synthetic: ArrayLike | None
) -> npt.NDArray[np.int64] | None:
    """One group code per pooled row, real and synthetic groups apart; None if no groups were given."""
    if g_real is None and g_synthetic is None:
        return None
    a = np.unique(np.arange(len(real)) if g_real is None else np.asarray(g_real), return_inverse=True)[1]
    b = np.unique(np.arange(len(synthetic)) if g_synthetic is None else np.asarray(g_synthetic), return_inverse=True)[1]
    if len(a) != len(real) or len(b) != len(synthetic):
        raise DataError(f"groups have {len(a)} and {len(b)} rows, samples have {len(real)} and {len(synthetic)}")
    return np.concatenate([a, b + a.max() + 1])


def _folds(x: Array, y: npt.NDArray[np.int64], groups: Any, folds: int, seed: int) -> list[tuple[Any, Any]]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if groups is None:
        return list(StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32).split(x, y))
    return list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32).split(x, y, groups))


def _linear() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))


def _trees(seed: int, max_iter: int, rows: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    # The default of 20 rows a leaf grows no tree at all on a few dozen rows, and reports a blind .500.
    return HistGradientBoostingClassifier(
        max_iter=max_iter,
        learning_rate=0.15,
        max_leaf_nodes=15,
        min_samples_leaf=max(2, min(20, rows // 20)),
        early_stopping=False,
        random_state=seed % 2**32,
    )


def _mean_auc(x: Array, y: npt.NDArray[np.int64], splits: list[tuple[Any, Any]], make: Any) -> float:
    """AUC averaged over folds: scores of different folds are not comparable, so they are not pooled."""
    from sklearn.metrics import roc_auc_score

    values = []
    for train, test in splits:
        if len(np.unique(y[train])) == 2 == len(np.unique(y[test])):
            score = make().fit(x[train], y[train]).predict_proba(x[test])[:, 1]
            values.append(roc_auc_score(y[test], score))
    return float(np.mean(values)) if values else float("nan")


def mmd(
    real: ArrayLike, synthetic: ArrayLike, *, bandwidth: float | None = None, permutations: int = 200, seed: int = 0
) -> dict[str, float]:
    """Unbiased squared maximum mean discrepancy with a Gaussian kernel (Gretton et al. 2012, eq. 3).

    Args:
        real: (n, d), n >= 2.
        synthetic: (m, d), m >= 2.
        bandwidth: sigma of exp(-|x-y|^2 / (2 sigma^2)); default: median distance of the pooled sample.
        permutations: Relabellings for the p-value; 0 for none.
        seed: Seed of the permutations.

    Returns:
        `mmd2` (0 in expectation for equal laws, may be negative) and `mmd_p`, the permutation p-value.

    Raises:
        DataError: With fewer than two rows in a sample.

    Example:
        >>> mmd([[0.0], [0.0]], [[1.0], [1.0]], bandwidth=1.0, permutations=0)["mmd2"].__round__(4)
        0.7869
    """
    r, s = as_pair(real, synthetic)
    n, m = len(r), len(s)
    if min(n, m) < 2:
        raise DataError(f"mmd needs at least 2 rows in each sample, got {n} and {m}")
    pooled = np.concatenate([r, s])
    d2 = torch.cat([block for _, block in squared_distance_chunks(pooled, pooled)])
    sigma2 = bandwidth**2 if bandwidth is not None else _median_of_pairs(d2, seed)
    kernel = d2.mul_(-0.5 / max(sigma2, 1e-300)).exp_().fill_diagonal_(0.0)
    is_real = np.zeros((permutations + 1, n + m))
    is_real[0, :n] = 1
    if permutations:
        order = seeded(seed, "mmd").permuted(np.tile(np.arange(n + m), (permutations, 1)), axis=1)
        np.put_along_axis(is_real[1:], order[:, :n], 1.0, 1)
    statistic = _mmd_statistics(kernel, torch.as_tensor(is_real), n, m)
    p = float((1 + (statistic[1:] >= statistic[0]).sum()) / (permutations + 1)) if permutations else float("nan")
    return {"mmd2": float(statistic[0]), "mmd_p": p}


def _median_of_pairs(d2: torch.Tensor, seed: int, most: int = 500) -> float:
    """Median squared distance of different rows; of at most 500 rows drawn from the pooled sample."""
    rows = seeded(seed, "mmd bandwidth").permutation(len(d2))[:most]
    part = d2[rows][:, rows]
    return float(part[~torch.eye(len(part), dtype=torch.bool)].median())


def _mmd_statistics(kernel: torch.Tensor, is_real: torch.Tensor, n: int, m: int) -> Array:
    """MMD^2 of many labellings (p, n + m) at once; the kernel has a zero diagonal."""
    against_real = is_real @ kernel
    within_real = (against_real * is_real).sum(1)
    between = against_real.sum(1) - within_real
    within_synthetic = kernel.sum() - within_real - 2 * between
    value = within_real / (n * (n - 1)) + within_synthetic / (m * (m - 1)) - 2 * between / (n * m)
    return np.asarray(value.numpy())
