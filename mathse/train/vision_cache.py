"""What a frozen vision tower made of images, kept on the host to pass the tower by in later epochs."""

from collections import OrderedDict

import torch


class VisionCache:
    """Features of the images used last, in at most `room` bytes, by the image paths of a row or group.

    They are the rows that replace a prompt's image tokens, in their order, of each output that a model reads
    (Qwen3-VL: of several layers). A model takes them as `mm_encoder_outputs` from transformers 5.24 on.
    """

    def __init__(self, room: int):
        self.room = room
        self.used = 0
        self.kept = OrderedDict()
        self.form = None

    def find(self, keys: list[tuple], device: torch.device):
        """The output of get_image_features() for these images, or None if some are not here; key (): no
        image.
        """
        keys = [key for key in keys if key]
        if not keys or not all(key in self.kept for key in keys):
            return None
        for key in keys:
            self.kept.move_to_end(key)
        kind, are_whole = self.form
        joined = (torch.cat(parts).to(device) for parts in zip(*(self.kept[key] for key in keys)))
        first, *layers = (rows[None] if whole else [rows] for whole, rows in zip(are_whole, joined))
        return kind(pooler_output=first, **({"deepstack_features": layers} if layers else {}))

    def keep(self, keys: list[tuple], counts: list[int], output) -> None:
        """Store an output of get_image_features(); counts[i]: image tokens of keys[i].

        An output that has not one row for each of these tokens is not kept.
        """
        outputs = [output.pooler_output, *(output.get("deepstack_features") or [])]
        rows = [torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]) for parts in outputs]
        if any(len(row) != sum(counts) for row in rows):
            return
        self.form = type(output), [isinstance(parts, torch.Tensor) for parts in outputs]
        for key, *features in zip(keys, *(row.split(counts) for row in rows)):
            if key and key not in self.kept:
                self.kept[key] = [feature.to("cpu", copy=True) for feature in features]
                self.used += sum(feature.nbytes for feature in features)
        while self.used > self.room:
            self.used -= sum(feature.nbytes for feature in self.kept.popitem(last=False)[1])


def free_memory() -> int:
    """Bytes of the machine's memory that can be had, as Linux says."""
    with open("/proc/meminfo") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
