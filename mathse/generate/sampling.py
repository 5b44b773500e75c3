"""How a token is drawn: the inverse of the cumulative distribution at the sample's own uniform number."""

import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


def make_warpers(temperature: float, top_k: int, top_p: float) -> list:
    """What changes logits (R, V) before a token is drawn; empty for greedy decoding."""
    if temperature == 0:
        return []
    warpers = [TemperatureLogitsWarper(temperature)]
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers


def uniform_numbers(seed: int, count: int) -> torch.Tensor:
    """The numbers (count) in [0, 1) of a sample.

    The CPU draws them: the same on every device, in any batch.
    """
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def draw(logits: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Tokens (R, 1) of the distributions softmax(logits), logits (R, V), at the points (R, 1) in [0, 1)."""
    probabilities = logits.softmax(-1)
    total = probabilities.cumsum(-1)
    tokens = torch.searchsorted(total, points * total[:, -1:], right=True)
    numbers = torch.arange(logits.shape[1], device=logits.device)
    # the product may be rounded up to the sum itself, behind the last token that can be drawn
    last = torch.where(probabilities > 0, numbers, 0).amax(-1, keepdim=True)
    return torch.minimum(tokens, last)
