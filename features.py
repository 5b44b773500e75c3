"""What a model's vision tower made of pictures, kept to pass it by when they come again: in sampling and judging, and in training with a frozen tower."""

from collections import OrderedDict

import torch


class Features:
    """Of questions' pictures: those used last, on the host, in up to `room` bytes.

    A question's features are the rows that its prompt's image tokens are replaced by, in their order, of each output that a model reads
    (Qwen3-VL: of several layers). They are handed to a model as `mm_encoder_outputs`, which models take under transformers 5.24 and not under 5.17.
    """

    def __init__(self, room: int):
        self.room, self.used, self.kept, self.form = room, 0, OrderedDict(), None

    def find(self, keys: list[tuple], device: torch.device):
        """The output of get_image_features for these questions' pictures, if all are here; key (): no pictures."""
        keys = [key for key in keys if key]
        if not keys or not all(key in self.kept for key in keys):
            return None
        for key in keys:
            self.kept.move_to_end(key)
        kind, wholes = self.form
        rows = (torch.cat(pieces).to(device) for pieces in zip(*(self.kept[key] for key in keys)))
        first, *layers = (row[None] if whole else [row] for whole, row in zip(wholes, rows))
        return kind(pooler_output=first, **({"deepstack_features": layers} if layers else {}))

    def keep(self, keys: list[tuple], counts: list[int], output) -> None:
        """Of questions with `counts` image tokens; if these are not what the features are for, nothing."""
        parts = [output.pooler_output, *(output.get("deepstack_features") or [])]
        rows = [torch.cat([piece.reshape(-1, piece.shape[-1]) for piece in part]) for part in parts]
        if any(len(row) != sum(counts) for row in rows):
            return
        self.form = type(output), [isinstance(part, torch.Tensor) for part in parts]
        for key, *pieces in zip(keys, *(row.split(counts) for row in rows)):
            if key and key not in self.kept:
                self.kept[key] = [piece.to("cpu", copy=True) for piece in pieces]
                self.used += sum(piece.nbytes for piece in pieces)
        while self.used > self.room:
            self.used -= sum(piece.nbytes for piece in self.kept.popitem(last=False)[1])


def image_token(model) -> int | None:
    """The token that stands for a piece of a picture."""
    return getattr(model.config, "image_token_id", getattr(model.config, "image_token_index", None))


def free_memory(device: torch.device) -> int:
    """Bytes; of the machine's memory, what Linux says can be had."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
