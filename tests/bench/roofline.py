"""What a device can do at best, and what a decoding step must read and compute: the bound against which
bench_engine.py measures steps.
"""

import itertools

import torch
from arms import seconds
from transformers import AutoConfig, AutoModelForImageTextToText


def fastest(work) -> float:
    """Seconds, of six times."""
    times = [seconds()]
    for _ in range(6):
        work()
        times.append(seconds())
    return min(after - before for before, after in itertools.pairwise(times))


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read and written, of copies that no cache holds."""
    size = (1 << 32) if torch.device(device).type == "cuda" else (1 << 28)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / fastest(lambda: target.copy_(source))


def matmul_rate(device: str, dtype) -> float:
    """FLOP a second of large matrix products."""
    side, count = (8192, 10) if torch.device(device).type == "cuda" else (1024, 1)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 * count / fastest(lambda: [left @ right for _ in range(count)])


def size_of(model) -> tuple[int, int, int]:
    """(parameters that every token passes, keys and values of a token, FLOP of its attention to another)"""
    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    weights = sum(part.numel() for part in model.get_decoder().parameters())
    weights += model.get_output_embeddings().weight.numel() - model.get_input_embeddings().weight.numel()
    kept = 2 * text.num_hidden_layers * text.num_key_value_heads * width
    return weights, kept, 4 * text.num_hidden_layers * text.num_attention_heads * width


def step_bound(model, ceilings: tuple, rows: int, prompts: int, shared: float, own: float) -> float:
    """Seconds at least of one token more in every row, by (bandwidth, rate): each attends to `shared` tokens,
    which are read once for all rows of their prompt, and to `own` ones.
    """
    (bandwidth, rate), element = ceilings, model.dtype.itemsize
    weights, kept, attention = size_of(model)
    products = max(weights * element / bandwidth, 2 * weights * rows / rate)
    read = kept * element * (prompts * shared + rows * own) / bandwidth
    return products + max(read, attention * rows * (shared + own) / rate)


def training_flops(folder: str, length: float) -> float:
    """Of a token in a sequence of `length`, what is recomputed and the vision tower not counted."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    weights, _, attention = size_of(model)
    return 6 * weights + 3 * attention * length / 2
