"""A language model of windows: vector-quantised tokens and a small causal transformer over them.

van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017 (arXiv 1711.00937), in the form that
SDformer (Chen et al., NeurIPS 2024) gave it for series: cosine similarity, moving averages, and revived codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_synth.decoder import Decoder, KeyValueCache
from lightning_synth.errors import ConfigError
from lightning_synth.plugins.timeseries.phases import PhasedGenerator
from lightning_synth.plugins.timeseries.windows import ResidualNoise, WindowCodec
from lightning_synth.requests import KeyedRNG, SampleRequests

#: Longest sequence of tokens that the automatic downsampling allows.
_MAX_TOKENS = 64
#: A code used less than this share of the average is dead.
_DEAD = 0.05


def draw_tokens(logits: Tensor, u: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Draw one token a row by inverting the distribution function, so that a row depends on its own number alone.

    Args:
        logits: (rows, codes).
        u: (rows,), uniform in [0, 1).
        temperature: Divides the logits.
        top_p: Keep the most likely tokens that together reach this probability (Holtzman et al. 2020, arXiv
            1904.09751).

    Example:
        >>> logits = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(3, 3)
        >>> draw_tokens(logits, torch.tensor([0.4, 0.6, 0.9])).tolist()
        [0, 1, 2]
        >>> draw_tokens(logits, torch.tensor([0.4, 0.6, 0.9]), top_p=0.7).tolist()
        [0, 0, 1]
    """
    probability, order = (logits.double() / temperature).softmax(1).sort(dim=1, descending=True, stable=True)
    before = probability.cumsum(1) - probability
    probability = torch.where(before < top_p, probability, 0.0)
    edges = probability.cumsum(1)
    rank = (edges <= u[:, None] * edges[:, -1:]).sum(1)
    # Rounding must not end behind the last token that was kept.
    rank = torch.minimum(rank, (probability > 0).sum(1) - 1)
    return order.gather(1, rank[:, None])[:, 0]


class Codebook(nn.Module):
    """Unit vectors that follow, by moving averages, the vectors assigned to them (arXiv 1711.00937, appendix A.1).

    Codes that are hardly used are moved to vectors of the present batch.

    Args:
        num_codes: How many.
        dim: Of a code.
        decay: Of the moving averages.
    """

    codes: Tensor
    count: Tensor
    total: Tensor

    def __init__(self, num_codes: int, dim: int, decay: float = 0.98) -> None:
        super().__init__()
        self.decay = decay
        codes = F.normalize(torch.randn(num_codes, dim), dim=1)
        self.register_buffer("codes", codes)
        self.register_buffer("count", torch.ones(num_codes))
        self.register_buffer("total", codes.clone())

    def assign(self, vectors: Tensor) -> Tensor:
        """Return the most similar code of each unit vector, (..., dim) to (...)."""
        return (vectors @ self.codes.T).argmax(-1)

    @torch.no_grad()
    def update(self, vectors: Tensor, tokens: Tensor, rng: KeyedRNG) -> None:
        """Move codes to the mean of their vectors, (n, dim), and dead ones to vectors drawn from these."""
        used = F.one_hot(tokens, len(self.codes)).to(vectors.dtype)
        count, total = _summed(used.sum(0)), _summed(used.T @ vectors)
        self.count.lerp_(count, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        average = self.count.mean()
        dead = self.count < _DEAD * average
        fresh = _first(vectors[rng.integers(len(vectors), (len(self.codes),))])
        self.total.copy_(torch.where(dead[:, None], fresh * average, self.total))
        self.count.copy_(torch.where(dead, average, self.count))
        self.codes.copy_(F.normalize(self.total, dim=1))


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _summed(value: Tensor) -> Tensor:
    """Sum over all processes."""
    if _distributed():
        torch.distributed.all_reduce(value)
    return value


def _first(value: Tensor) -> Tensor:
    """The value of the first process, on all."""
    if _distributed():
        torch.distributed.broadcast(value, 0)
    return value


class _ResidualConv(nn.Module):
    """Two convolutions around which the input is added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.SiLU(), nn.Conv1d(width, width, 3, padding=1), nn.SiLU(), nn.Conv1d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class Tokenizer(nn.Module):
    """Convolutional autoencoder of windows whose latent vectors are codes; its decoder knows the condition too.

    Args:
        channels: Of the window.
        length: Of the window; padded at its end to a multiple of ``downsample``.
        downsample: Steps per token, a power of 2.
        num_codes: Size of the codebook.
        code_dim: Size of a code.
        width: Features of the convolutions.
    """

    def __init__(
        self,
        channels: int,
        length: int,
        downsample: int,
        num_codes: int,
        code_dim: int,
        width: int,
        condition_size: int,
    ) -> None:
        super().__init__()
        self.length, self.tokens = length, -(-length // downsample)
        self.padding = self.tokens * downsample - length
        encoder: list[nn.Module] = [nn.Conv1d(channels, width, 3, padding=1), _ResidualConv(width)]
        decoder: list[nn.Module] = [nn.Conv1d(code_dim + condition_size, width, 3, padding=1), _ResidualConv(width)]
        for _ in range(int(math.log2(downsample))):
            encoder += [nn.Conv1d(width, width, 4, stride=2, padding=1), _ResidualConv(width)]
            decoder += [nn.ConvTranspose1d(width, width, 4, stride=2, padding=1), _ResidualConv(width)]
        self.encoder = nn.Sequential(*encoder, nn.SiLU(), nn.Conv1d(width, code_dim, 3, padding=1))
        self.decoder = nn.Sequential(*decoder, nn.SiLU(), nn.Conv1d(width, channels, 3, padding=1))
        self.codebook = Codebook(num_codes, code_dim)

    def encode(self, x: Tensor) -> Tensor:
        """Return unit vectors (rows, tokens, code_dim) of (rows, channels, length)."""
        x = F.pad(x, (0, self.padding), mode="replicate")
        return F.normalize(self.encoder(x).transpose(1, 2), dim=2)

    def decode(self, vectors: Tensor, condition: Tensor) -> Tensor:
        """Return (rows, channels, length) of (rows, tokens, code_dim) and (rows, condition_size)."""
        repeated = condition[:, None].expand(-1, self.tokens, -1)
        x: Tensor = self.decoder(torch.cat([vectors, repeated], dim=2).transpose(1, 2))
        return x[:, :, : self.length]


class TokenPrior(nn.Module):
    """Causal transformer over tokens; the first position holds the condition.

    Args:
        num_codes: Size of the vocabulary.
        tokens: Length of a sequence.
        condition_size: Of the condition vector.
        dim: Features.
        heads: Attention heads; ``dim`` is a multiple of twice their number.
        layers: Blocks.
    """

    def __init__(self, num_codes: int, tokens: int, condition_size: int, dim: int, heads: int, layers: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.embed = nn.Embedding(num_codes, dim)
        # One token needs no embedding of what came before it.
        self.embed.requires_grad_(tokens > 1)
        self.start = nn.Linear(condition_size + 1, dim, bias=False)
        self.decoder, self.out = Decoder(dim, layers, heads), nn.Linear(dim, num_codes)

    def first(self, condition: Tensor) -> Tensor:
        """Return the input of the first position, (rows, dim)."""
        start: Tensor = self.start(F.pad(condition, (0, 1), value=1.0))
        return start

    def following(self, x: Tensor, cache: KeyValueCache) -> Tensor:
        """Return logits (rows, codes) of the next token, given the input x (rows, dim) of its position."""
        logits: Tensor = self.out(self.decoder.step(x, cache))
        return logits

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Return logits (rows, tokens, codes) of every token given those before it."""
        inputs = torch.cat([self.first(condition)[:, None], self.embed(tokens[:, :-1])], dim=1)
        logits: Tensor = self.out(self.decoder(inputs))
        return logits

    def sample(self, condition: Tensor, u: Tensor, temperature: float, top_p: float) -> Tensor:
        """Draw tokens (rows, tokens), one position after the other, all rows at once.

        Args:
            condition: (rows, condition_size).
            u: (rows, tokens), uniform in [0, 1).
            temperature: As `draw_tokens`.
            top_p: As `draw_tokens`.
        """
        x, cache, drawn = self.first(condition), KeyValueCache(), list[Tensor]()
        for position in range(self.tokens):
            drawn.append(draw_tokens(self.following(x, cache), u[:, position], temperature, top_p))
            x = self.embed(drawn[-1])
        return torch.stack(drawn, dim=1)


class VQTS(PhasedGenerator):
    """VQ tokens and a causal transformer over them (van den Oord et al. 2017, arXiv 1711.00937; SDformer, 2024).

    One fit has two phases: a convolutional autoencoder learns to write a window as a few dozen codes; then a small
    transformer learns their joint distribution, the condition first. Samples are drawn token by token, decoded, and
    given the noise that the codes leave out (`ResidualNoise`).

    Token models reach the best published scores on short windows, and do so in part by memorising: with as many
    training windows as usual, long sequences of codes are unique, and a large transformer learns them by heart. The
    default one is small, sees some wrong tokens in training, and its loss on held-out windows (``loss/tokens`` of
    validation) says when to stop; look at the memorisation metrics before you trust a sample.

    Args:
        downsample: Steps per token, a power of 2; None: the smallest from 2 up that leaves at most 64 tokens.
        num_codes: Size of the codebook.
        code_dim: Size of a code.
        width: Features of the convolutions.
        d_model: Features of the transformer.
        heads: Attention heads; ``d_model`` is a multiple of twice their number.
        layers: Blocks of the transformer.
        commitment: Weight of the distance between encoder outputs and codes (eq. 3).
        token_noise: Share of the tokens before a position that training replaces by random ones.
        tokenizer_fraction: Share of the budget of the first phase.
        temperature: Of the tokens; below 1 samples are more typical and less varied.
        top_p: Probability kept at every token; 1 keeps all.
        noise_scale: Share of the unexplained noise that is added to samples.
        lr: Learning rate.
        **kwargs: ``schema``, ``seed``.

    Shapes:
        batch["x"]: (batch, channels, length) float32, raw units; optional ``y``, conditions, ``mask`` (batch, length).

    Raises:
        ConfigError: If a setting is out of range, or the Trainer has no budget to divide.

    Example:
        >>> from lightning_synth.testing import tiny_series_schema
        >>> model = VQTS(schema=tiny_series_schema(channels=2, length=24), width=8)
        >>> model.tokenizer.tokens
        12
    """

    domain = "timeseries"
    conditions = ("label", "*")

    def __init__(
        self,
        *,
        downsample: int | None = None,
        num_codes: int = 256,
        code_dim: int = 16,
        width: int = 64,
        d_model: int = 64,
        heads: int = 4,
        layers: int = 2,
        commitment: float = 0.25,
        token_noise: float = 0.05,
        tokenizer_fraction: float = 0.5,
        temperature: float = 1.0,
        top_p: float = 1.0,
        noise_scale: float = 1.0,
        lr: float = 2e-3,
        **kwargs: Any,
    ) -> None:
        if downsample is not None and (downsample < 1 or downsample & (downsample - 1)):
            raise ConfigError(f"{downsample=} must be a power of 2, or None")
        if min(num_codes, code_dim, width, d_model, heads, layers) < 1 or d_model % (2 * heads):
            raise ConfigError(
                f"{num_codes=}, {code_dim=}, {width=}, {layers=} must be at least 1, {d_model=} a multiple of "
                f"twice {heads=}"
            )
        if not 0 <= token_noise < 1 or not 0 < tokenizer_fraction < 1 or commitment < 0 or noise_scale < 0:
            raise ConfigError(
                f"{token_noise=} must be in [0, 1), {tokenizer_fraction=} in (0, 1), {commitment=} and {noise_scale=} "
                "not negative"
            )
        _check_sampling(temperature, top_p)
        super().__init__(
            downsample=downsample,
            num_codes=num_codes,
            code_dim=code_dim,
            width=width,
            d_model=d_model,
            heads=heads,
            layers=layers,
            commitment=commitment,
            token_noise=token_noise,
            tokenizer_fraction=tokenizer_fraction,
            temperature=temperature,
            top_p=top_p,
            noise_scale=noise_scale,
            lr=lr,
            **kwargs,
        )

    def build(self, schema: dict[str, Any]) -> None:
        """Make tokenizer, noise and transformer."""
        p, codec = self.hparams, WindowCodec(schema)
        self.codec = codec
        halvings = max(1, math.ceil(math.log2(codec.length / _MAX_TOKENS)))
        downsample = p.downsample or 2**halvings
        size = codec.condition_size
        self.tokenizer = Tokenizer(codec.channels, codec.length, downsample, p.num_codes, p.code_dim, p.width, size)
        self.noise = ResidualNoise(codec.data_channels, codec.length, p.code_dim + size)
        self.prior = TokenPrior(p.num_codes, self.tokenizer.tokens, size, p.d_model, p.heads, p.layers)

    # Training ------------------------------------------------------------------------------------------------------

    @property
    def is_tokenizing(self) -> bool:
        """Whether training is in its first phase."""
        return self.progress < float(self.hparams.tokenizer_fraction)

    def resting(self) -> Sequence[nn.Module]:
        """Return the networks that the present phase leaves alone."""
        return (self.prior,) if self.is_tokenizing else (self.tokenizer, self.noise)

    def losses(self, batch: Mapping[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Return the losses of the present phase; those of both in validation."""
        if not self.training:
            one, two = self._tokenizer_losses(batch, rng), self._prior_losses(batch, rng)
            return {**one, **two, "loss": one["loss"] + two["loss"]}
        losses = self._tokenizer_losses(batch, rng) if self.is_tokenizing else self._prior_losses(batch, rng)
        return {**losses, "loss": losses["loss"] + self.zero_loss()}

    def _tokenizer_losses(self, batch: Mapping[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Reconstruct through the codes, straight through which gradients pass (eq. 3)."""
        x, observed, condition = self.codec.encode(batch), self.codec.observed(batch), self.codec.conditions(batch)
        vectors, book = self.tokenizer.encode(x), self.tokenizer.codebook
        tokens = book.assign(vectors)
        codes = book.codes[tokens]
        residual = (x - self.tokenizer.decode(vectors + (codes - vectors).detach(), condition)) * observed
        reconstruction = residual.square().sum() / observed.expand_as(residual).sum()
        commitment = (vectors - codes).square().sum(2).mean()
        data = self.codec.data_channels
        h = torch.cat([codes.mean(1), condition], dim=1)
        noise = self.noise.loss(residual[:, :data], observed[:, :data], h) / residual[0].numel()
        if self.training and torch.is_grad_enabled():
            book.update(vectors.flatten(0, 1), tokens.flatten(), rng.fork("revive"))
        loss = reconstruction + self.hparams.commitment * commitment + noise
        return {"loss": loss, "reconstruction": reconstruction, "commitment": commitment, "noise": noise}

    def _prior_losses(self, batch: Mapping[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Cross-entropy of every token given the condition and the tokens before it."""
        with torch.no_grad():
            tokens = self.tokenizer.codebook.assign(self.tokenizer.encode(self.codec.encode(batch)))
        seen = tokens
        if self.training:
            wrong = rng.fork("wrong").bernoulli(self.hparams.token_noise, tokens.shape)
            seen = torch.where(wrong, rng.fork("token").integers(self.hparams.num_codes, tokens.shape), tokens)
        logits = self.prior(seen, self.codec.conditions(batch))
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        return {"loss": loss, "tokens": loss}

    def on_train_end(self) -> None:
        """Agree on the noise."""
        super().on_train_end()
        self.noise.synchronise()

    # Sampling ------------------------------------------------------------------------------------------------------

    def sample_batch(
        self,
        requests: SampleRequests,
        rng: KeyedRNG,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        noise_scale: float | None = None,
    ) -> dict[str, Tensor]:
        """Draw tokens, decode them and add the unexplained noise.

        Args:
            requests: Rows wanted.
            rng: One seed a row.
            temperature: In place of the hyper-parameter.
            top_p: In place of the hyper-parameter.
            noise_scale: In place of the hyper-parameter.
        """
        p = self.hparams
        temperature, top_p = p.temperature if temperature is None else temperature, p.top_p if top_p is None else top_p
        _check_sampling(temperature, top_p)
        condition = self.codec.conditions({"index": requests.index, **requests.condition})
        u = rng.fork("tokens").uniform((self.tokenizer.tokens,))
        codes = self.tokenizer.codebook.codes[self.prior.sample(condition, u, temperature, top_p)]
        x = self.tokenizer.decode(codes, condition)
        scale = p.noise_scale if noise_scale is None else noise_scale
        h = torch.cat([codes.mean(1), condition], dim=1)
        x[:, : self.codec.data_channels] += scale * self.noise(h, rng.fork("noise"))
        return self.codec.decode(x)


def _check_sampling(temperature: float, top_p: float) -> None:
    if temperature <= 0 or not 0 < top_p <= 1:
        raise ConfigError(f"{temperature=} must be positive, {top_p=} in (0, 1]")
