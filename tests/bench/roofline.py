"""What a device can do at best, and what a decoding step must read and compute: the bound against which
bench_engine.py measures steps.
"""

from dataclasses import dataclass

import torch
from worker import seconds


def best_of(count: int, work) -> float:
    """Seconds, of the fastest."""
    work()
    times = []
    for _ in range(count):
        start = seconds()
        work()
        times.append(seconds() - start)
    return min(times)


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read and written, of copies that no cache holds."""
    size = (1 << 32) if torch.device(device).type == "cuda" else (1 << 28)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / best_of(5, lambda: target.copy_(source))


def matmul_rate(device: str, dtype) -> float:
    """FLOP a second of large matrix products."""
    side, count = (8192, 10) if torch.device(device).type == "cuda" else (1024, 1)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def work():
        for _ in range(count):
            left @ right

    return 2 * side**3 * count / best_of(5, work)


@dataclass
class Step:
    """One token more in every row of a model whose language part attends to all tokens."""

    weights: int  # parameters that every token passes through
    token_bytes: int  # keys and values of a token
    token_flops: int  # attention of one token to another, all layers
    element: int  # bytes of a number

    def bound(
        self, bandwidth: float, rate: float, rows: int, prompts: int, shared: float, own: float
    ) -> float:
        """Seconds at least: each row attends to `shared` tokens, which are read once for all rows of their
        prompt, and to `own` ones.
        """
        products = max(self.weights * self.element / bandwidth, 2 * self.weights * rows / rate)
        read = self.token_bytes * (prompts * shared + rows * own) / bandwidth
        computed = self.token_flops * rows * (shared + own) / rate
        return products + max(read, computed)


def step_of(model) -> Step:
    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    weights = sum(part.numel() for part in model.get_decoder().parameters())
    weights -= model.get_input_embeddings().weight.numel()
    return Step(
        weights=weights + model.get_output_embeddings().weight.numel(),
        token_bytes=2 * text.num_hidden_layers * text.num_key_value_heads * width * model.dtype.itemsize,
        token_flops=4 * text.num_hidden_layers * text.num_attention_heads * width,
        element=model.dtype.itemsize,
    )
