"""Named errors: each says what was wrong, where, and what to do."""

from __future__ import annotations


class LightningSynthError(Exception):
    """Base of every error raised by this library on purpose."""


class ConfigError(LightningSynthError, ValueError):
    """A setting is impossible, or impossible together with another one."""


class DataError(LightningSynthError, ValueError):
    """A data item cannot be used; the message names its index and field."""


class SchemaError(LightningSynthError, ValueError):
    """A schema lacks something, or cannot be inferred from a batch."""


class SchemaMismatchError(SchemaError):
    """Two schemas that must describe the same kind of item differ."""


class LeakageError(LightningSynthError, ValueError):
    """Data of a validation or test split reached a generator or a training set."""


class SyntheticInEvaluationError(LeakageError):
    """Synthetic items were found in a validation or test split."""


class EmptyPoolError(LightningSynthError, ValueError):
    """Synthetic items were asked for, but the pool holds none."""


class PoolError(LightningSynthError, RuntimeError):
    """A pool on disk is incomplete, corrupt, locked or of an unknown format."""


class CheckpointError(LightningSynthError, RuntimeError):
    """A checkpoint is corrupt, altered, non-finite or of another class."""


class NotFittedError(LightningSynthError, RuntimeError):
    """A generator was asked to sample before it was fitted."""


class NonFiniteLossError(LightningSynthError, RuntimeError):
    """A training loss became NaN or infinite."""


class InvalidSamplesError(LightningSynthError, RuntimeError):
    """More than half of the sampled items are invalid."""


class UnknownGeneratorError(LightningSynthError, KeyError):
    """No generator of that name is registered."""

    def __str__(self) -> str:
        """Return the message itself (KeyError would show its repr)."""
        return str(self.args[0]) if self.args else ""


class MissingExtraError(LightningSynthError, ImportError):
    """A generator needs packages that are not installed; the message names the extra."""
