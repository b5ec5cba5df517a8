"""The outcome of a study: paired differences with confidence intervals, and a verdict in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from lightning_synth.evaluation import Evaluation

_METRIC = ("macro_f1", True)
_LEVEL = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Compute a mean, its 95 % Student interval and the two-sided p-value against 0.

    Args:
        values: One per independent repetition.

    Returns:
        (mean, low, high, p); the last three are NaN below two repetitions.

    Example:
        >>> [round(v, 3) for v in mean_interval([0.1, 0.2, 0.3])]
        [0.2, -0.048, 0.448, 0.074]
    """
    from scipy import stats

    x = np.asarray(values, dtype=float)
    mean = float(x.mean()) if len(x) else float("nan")
    if len(x) < 2:
        return mean, float("nan"), float("nan"), float("nan")
    error = float(x.std(ddof=1)) / len(x) ** 0.5
    if error < 1e-12:  # identical repetitions: no spread to infer from
        return mean, mean, mean, 0.0 if abs(mean) > 1e-12 else 1.0
    half = float(stats.t.ppf(0.5 + _LEVEL / 2, len(x) - 1)) * error
    return mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, len(x) - 1))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjust p-values for their number (Holm 1979).

    Args:
        p_values: Raw ones; NaN stays NaN and does not count.

    Returns:
        Adjusted p-values in the same order.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p) if not np.isnan(p[i])]
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = running
    return adjusted


def in_words(metric: str) -> str:
    """Write the name of a score as people do.

    Args:
        metric: A key of the records.

    Example:
        >>> in_words("macro_f1"), in_words("balanced_accuracy"), in_words("ndcg@10")
        ('macro F1', 'balanced accuracy', 'NDCG@10')
    """
    upper = ("f1", "rmse", "mae", "roc", "auc", "ndcg", "hr", "mrr")
    words = metric.replace("_", " ").split()
    return " ".join(word.upper() if word.partition("@")[0] in upper else word for word in words)


@dataclass
class StudyResult:
    """Scores of every arm and what follows from them.

    Args:
        records: One dict per trained downstream model.
        baselines: Arms that are trivial generators.
        config: Settings of the study, plain.
        examples: Arm name (and ``real``) to a few items, with ``schema``.
        evaluations: Arm name to its `Evaluation`.
        seconds: Run time of this call.
        metrics: Downstream model to its main score, and whether higher is better; those left out have macro F1.
    """

    records: list[dict[str, Any]]
    baselines: set[str]
    config: dict[str, Any]
    examples: dict[str, Any] = field(default_factory=dict)
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    seconds: float = 0.0
    metrics: Mapping[str, tuple[str, bool]] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """Name of the main score, which is its column in the table; ``score`` if the models differ in it."""
        names = {self.metrics.get(record["downstream"], _METRIC)[0] for record in self.records}
        return names.pop() if len(names) == 1 else "score"

    @property
    def frame(self) -> pd.DataFrame:
        """All scores, one row per trained downstream model."""
        import pandas as pd

        frame = pd.DataFrame(self.records)
        frame["shots"] = frame["shots"].map(lambda shots: "all" if shots is None or shots != shots else str(int(shots)))
        return frame

    def _clusters(self, rows: pd.DataFrame, metric: str) -> pd.Series:
        """Mean score per independent repetition: seeds of one draw share its data, so they are averaged first."""
        by = ["fold", "draw"] if rows[["fold", "draw"]].drop_duplicates().shape[0] > 1 else ["fold", "draw", "seed"]
        return rows.groupby(by)[metric].mean()

    def _settings(self) -> list[tuple[str, str]]:
        frame = self.frame
        return list(frame[["shots", "downstream"]].drop_duplicates().itertuples(index=False, name=None))

    @property
    def table(self) -> pd.DataFrame:
        """One row per arm: mean score, 95 % interval, paired gains over real-only and over the best classical arm.

        Gains are improvements: where lower scores are better (errors), a gain is a reduction.
        """
        import pandas as pd

        frame = self.frame
        lines = []
        for shots, downstream in self._settings():
            group = frame[(frame["shots"] == shots) & (frame["downstream"] == downstream)]
            metric, higher = self.metrics.get(downstream, _METRIC)
            sign = 1 if higher else -1
            scores = {key: self._clusters(rows, metric) for key, rows in group.groupby(["arm", "policy"], sort=False)}
            real = scores["real", "real"]
            classical = [key for key in scores if key[0] in self.baselines and key[1] == "mixed"]
            best = max(classical, key=lambda key: sign * scores[key].mean()) if classical else None
            for (arm, policy), values in scores.items():
                mean, low, high, _ = mean_interval(values.tolist())
                gain = mean_interval((sign * (values - real)).tolist())
                over = mean_interval((sign * (values - scores[best])).tolist()) if best else (np.nan,) * 4
                lines.append(
                    {
                        "shots": shots,
                        "downstream": downstream,
                        "arm": arm,
                        "policy": policy,
                        **({"metric": metric} if self.metric == "score" else {}),
                        self.metric: mean,
                        "low": low,
                        "high": high,
                        "gain": gain[0] if policy != "real" else np.nan,
                        "gain_low": gain[1] if policy != "real" else np.nan,
                        "gain_high": gain[2] if policy != "real" else np.nan,
                        "p": gain[3] if policy != "real" else np.nan,
                        "over_classical": over[0],
                        "over_classical_low": over[1],
                        "over_classical_high": over[2],
                        "repetitions": len(values),
                    }
                )
        table = pd.DataFrame(lines)
        table["p_holm"] = holm(table["p"].where(table.apply(self._is_candidate, axis=1)).tolist())
        return table

    def _is_candidate(self, row: pd.Series) -> bool:
        """Whether the verdict is about this row: the generators asked for, not the trivial arms."""
        asked = {arm for arm in self.frame["arm"] if arm != "real"} - self.baselines
        return bool(row["policy"] != "real" and (row["arm"] in asked or not asked))

    @property
    def verdict(self) -> str:
        """Say in words whether synthetic data helps on this task; the first line of every report."""
        table = self.table
        candidates = table[table.apply(self._is_candidate, axis=1)]
        if candidates.empty:
            return "Nothing was compared: the study has no synthetic arm."
        best = candidates.loc[candidates["gain"].idxmax()]
        what = self._describe(best)
        if candidates["p"].isna().all():
            return f"Undecided: one repetition gives no interval; the best arm is {what}. Raise draws or seeds."
        helped = candidates[(candidates["gain"] > 0) & (candidates["p_holm"] < 1 - _LEVEL)]
        harmed = candidates[(candidates["gain"] < 0) & (candidates["p_holm"] < 1 - _LEVEL)]
        counts = f"{len(helped)} of {len(candidates)} comparisons gain, {len(harmed)} lose (95 %, Holm-corrected)"
        if helped.empty:
            return f"Synthetic data does not help here: {counts}; the best arm is {what}."
        top = helped.loc[helped["gain"].idxmax()]
        return f"Synthetic data helps here: {counts}; the best is {self._describe(top)}{_against_classical(top)}."

    def _describe(self, row: pd.Series) -> str:
        shots = "" if row["shots"] == "all" else f", {row['shots']} shots"
        interval = "" if np.isnan(row["gain_low"]) else f" [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}]"
        arm = f"{row['arm']} ({row['policy']}, {row['downstream']}{shots})"
        metric, higher = self.metrics.get(row["downstream"], _METRIC)
        lower = "" if higher else "lower "
        return f"{arm} with {row['gain']:+.3f} {lower}{in_words(metric)}{interval} over real only"

    def to_json(self) -> str:
        """Return verdict, table, records and settings as JSON."""
        table = json.loads(self.table.to_json(orient="records"))
        plain = {"verdict": self.verdict, "table": table, "records": self.records, "config": self.config}
        return json.dumps({**plain, "seconds": self.seconds}, indent=1)

    def to_text(self) -> str:
        """Return the verdict and the table for a terminal."""
        columns = [
            "shots",
            "downstream",
            "arm",
            "policy",
            *(["metric"] if self.metric == "score" else []),
            self.metric,
            "low",
            "high",
            "gain",
            "gain_low",
            "gain_high",
            "p_holm",
        ]
        text = self.table[columns].to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep="")
        return f"{self.verdict}\n\n{text}"

    def report(self, folder: str | Path) -> Path:
        """Write ``report.html``, ``result.json``, ``table.csv`` and figures.

        Args:
            folder: Made if absent.

        Returns:
            Path of the HTML file.
        """
        from lightning_synth.report import write_report

        return write_report(self, Path(folder))


def _against_classical(row: pd.Series) -> str:
    if np.isnan(row["over_classical"]):
        return ""
    low, high = row["over_classical_low"], row["over_classical_high"]
    word = "more than" if low > 0 else "less than" if high < 0 else "no clear difference from"
    return f"; {word} the best trivial arm ({row['over_classical']:+.3f} [{low:+.3f}, {high:+.3f}])"
