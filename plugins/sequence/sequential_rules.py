"""Sequential rules as a generator: what recommends well is a hard sampler to beat."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.sequence.walks import RuleWalk, draw_lengths
from lightning_synth.requests import KeyedRNG, SampleRequests


class SequentialRuleSampler(RuleWalk):
    """Each next item drawn in proportion to its score under sequential rules (Ludewig & Jannach, arXiv 1803.09587).

    The rules are those of `lightning_synth.downstream.SequentialRules`: pairs within a window weigh 1/distance, the
    user's last items fire them with a discount. First items and lengths have the law of training.

    Args:
        window: Largest distance of a rule.
        back: Weight of the reversed rules.
        decay: Discount per step into the past, in (0, 1].
        history: Items of the user that fire rules.

    Raises:
        ConfigError: If a setting is out of range.

    Example:
        >>> from lightning_synth.testing import tiny_items, tiny_schema
        >>> model = SequentialRuleSampler(history=3).fit_on(tiny_items("sequence"), tiny_schema("sequence"))
        >>> len(model.sample(5).items())
        5
    """

    def __init__(
        self, *, window: int = 10, back: float = 0.5, decay: float = 0.7, history: int = 10, **kwargs: Any
    ) -> None:
        if window < 1 or history < 1 or back < 0 or not 0 < decay <= 1:
            raise ConfigError(
                "sequential_rules needs window >= 1, history >= 1, back >= 0 and decay in (0, 1], "
                f"got {window}, {history}, {back}, {decay}"
            )
        super().__init__(window=window, back=back, decay=decay, history=history, **kwargs)
        self.window, self.back, self.decay, self.history = window, back, decay, history

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> dict[str, Tensor]:
        """Walk along the rules.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            Batch dict.
        """
        return self.walk(draw_lengths(self.fitted_schema, rng.fork("length")), rng)
