"""Samples between a window and its neighbour in time, near the border of the class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.resampling import TrainingRows, WindowResampler, lengths_in, read_at
from lightning_synth.requests import KeyedRNG, SampleRequests


def delay(batch: dict[str, Tensor], steps: Tensor) -> dict[str, Tensor]:
    """Show windows as they were some steps earlier; the unknown past is the window itself, mirrored at its first step.

    Args:
        batch: With ``x`` (rows, channels, length).
        steps: float (rows,), at least 0; fractions interpolate between two neighbouring delays.

    Returns:
        Batch dict.

    Example:
        >>> delay({"x": torch.tensor([[[0.0, 2.0, 4.0, 6.0]]])}, torch.tensor([1.5]))["x"]
        tensor([[[3., 1., 1., 3.]]])
    """
    time = torch.arange(batch["x"].shape[-1], device=steps.device)
    return read_at(batch, (time - steps[:, None]).abs())


class TSMOTE(WindowResampler):
    """A point between a window at one leading time and the same window at the next, drawn by a classifier's score.

    Zhao et al. 2022, doi:10.24963/ijcai.2022/334, for minority samples that end in an event: sub-series with a growing
    leading time before the event move towards the border of the class; a new sample lies between two that are adjacent
    in time, not between two that look alike, and is the likelier the higher a classifier scores it, which drops noise.
    Adapted to windows that were already cut:

    - the leading time is a delay of the window by whole steps, whose missing past is mirrored;
    - the score is the probability of the class by a logistic regression on the standardised training windows;
    - delays are used as long as the classifier still takes the window for its own class (the paper finds this limit
      with spies hidden in the majority class); a window that it never does is not used at all.

    The result is a window delayed by a fraction of a step: phases survive, unlike with `SMOTE`. Without classes all
    delays are equally likely.

    Args:
        max_lead: Largest delay in steps; at most half of the window is mirrored.

    Shapes:
        x: (rows, channels, length), units of the data.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> TSMOTE(max_lead=2).fit_on(tiny_series(8), tiny_series_schema()).sample(3).data["x"].shape
        torch.Size([3, 2, 24])
    """

    def __init__(self, *, max_lead: int = 8, **kwargs: Any) -> None:
        if max_lead < 1:
            raise ConfigError(f"max_lead must be at least 1 step, got {max_lead}")
        super().__init__(max_lead=max_lead, **kwargs)

    @property
    def leads(self) -> Tensor:
        """Weight of the segment between delays l and l + 1 of every training window, float (items, max_lead)."""
        return self.derived("leads", self._weigh_leads)

    def _weigh_leads(self) -> Tensor:
        count = max(1, min(self.hparams.max_lead, self.windows["x"].shape[-1] // 2))
        scores = self._scores(count)
        # A delay beyond one that has already left the class is of no use.
        kept = (scores > 0).long().cumprod(dim=1).bool()
        inside = torch.arange(1, count + 1) < lengths_in(self.windows)[:, None]
        return (scores[:, :-1] + scores[:, 1:]) / 2 * (kept[:, 1:] & inside)

    def _scores(self, count: int) -> Tensor:
        """Probability of its own class for all windows and delays, 0 if another is likelier: (items, count + 1)."""
        labels, windows = self.windows.get("y"), self.windows
        if labels is None or len(labels.unique()) < 2:
            return torch.ones(len(windows["x"]), count + 1)
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(max_iter=200).fit(self._features(windows), labels.numpy())
        own = torch.searchsorted(torch.from_numpy(model.classes_), labels)[:, None]
        columns = []
        for lead in range(count + 1):
            delayed = delay(windows, torch.full((len(labels),), float(lead)))
            probability = torch.from_numpy(model.predict_proba(self._features(delayed)))
            score = probability.gather(1, own)
            columns.append(torch.where(score >= probability.amax(1, keepdim=True), score, 0.0))
        return torch.cat(columns, dim=1).float()

    def _features(self, batch: dict[str, Tensor]) -> Any:
        mean, std = (torch.tensor(self.fitted_schema[name])[:, None] for name in ("mean", "std"))
        z = (batch["x"] - mean) / std
        return (z * batch["mask"][:, None] if "mask" in batch else z).flatten(1).numpy()

    def _index_rows(self) -> TrainingRows:
        rows = super()._index_rows()
        rows.weight = self.leads.sum(dim=1)
        return rows

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> dict[str, Tensor]:
        """Pick a window by its weight, then two adjacent delays by theirs, then a point between them.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            Batch dict with ``x`` (rows, channels, length).
        """
        source = self.rows.pick(requests, rng.fork("source"))
        running = self.leads.to(rng.device)[source].cumsum(dim=1)
        draw = rng.fork("lead").uniform((1,)) * running[:, -1:]
        # Where no delay is allowed at all, the first is taken.
        lead = torch.where(running[:, -1] > 0, torch.searchsorted(running, draw, right=True)[:, 0], 0)
        lead = lead.clamp(max=running.shape[1] - 1)
        return delay(self.take(source), lead + rng.fork("step").uniform(()))
