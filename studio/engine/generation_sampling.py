"""Which token comes next: the wishes of a request applied to the model's numbers."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

import torch

from studio.engine.dialogue import Sampling
from studio.engine.failure import model_failure

HEAD = 1024  # tokens looked at first for top_p
GREEDY_BELOW = 1e-4  # temperatures under this always take the likeliest


class Sampler:
    """Chooses tokens; its own random numbers make an answer repeatable whatever else is going on."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        self.seen = set(prompt)
        self.random = torch.Generator().manual_seed(secrets.randbits(63) if sampling.seed is None else sampling.seed)

    def choose(self, logits: torch.Tensor) -> int:
        """The next token id from logits of shape [vocabulary]. Raises EngineError when they are not numbers."""
        scores = logits.float()
        if not math.isfinite(scores.max()):  # the largest is no number if any is none
            raise model_failure(
                "the model's output is not a number.", "Its weights are damaged, or need another number format."
            )
        token = self._pick(self._penalised(scores))
        self.seen.add(token)
        return token

    def _penalised(self, scores: torch.Tensor) -> torch.Tensor:
        penalty = self.sampling.repetition_penalty
        if penalty == 1.0 or not self.seen:
            return scores
        index = torch.tensor(sorted(self.seen))
        known = scores[index]
        return scores.index_copy(0, index, torch.where(known > 0, known / penalty, known * penalty))

    def _pick(self, scores: torch.Tensor) -> int:
        wish = self.sampling
        if wish.temperature < GREEDY_BELOW:
            return int(scores.argmax())
        scores = scores / wish.temperature
        if wish.min_p > 0:  # a share of the likeliest's probability is a distance from its score
            far = scores < scores.max() + math.log(wish.min_p)
            scores = scores.masked_fill(far, -torch.inf)
        if not wish.top_k and wish.top_p >= 1 and wish.min_p <= 0:
            return self._draw(scores.softmax(-1))
        chances, order = _likeliest(scores, wish)
        kept = chances * (chances.cumsum(-1) - chances < wish.top_p)  # always keeps the likeliest
        return int(order[self._draw(kept)])

    def _draw(self, chances: torch.Tensor) -> int:
        return int(torch.multinomial(chances, 1, generator=self.random))


def _likeliest(scores: torch.Tensor, wish: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities in falling order and whose they are: of the best `top_k`, or of as many as can be chosen.

    Sorting all of a large vocabulary would take longer than the model takes for a token.
    """
    count = len(scores)
    values, order = scores.topk(min(wish.top_k or HEAD, count))
    if wish.top_k:
        return values.softmax(-1), order
    chances = (values - scores.logsumexp(-1)).exp()
    enough = chances.sum() >= wish.top_p or values[-1] == -torch.inf
    if not enough and len(chances) < count:
        values, order = scores.sort(descending=True)
        chances = values.softmax(-1)
    return chances, order


def likelihoods(logits: torch.Tensor, token: int, alternatives: int) -> tuple[float, list[tuple[int, float]]]:
    """The log-probability of `token` and the likeliest tokens with theirs, as the model itself sees them.

    Temperature, penalties and cuts are choices of the asker and are left out.
    """
    scores = logits.float().log_softmax(-1)
    values, order = scores.topk(min(alternatives, len(scores)))
    return float(scores[token]), list(zip(order.tolist(), values.tolist(), strict=True))
