"""What the stages ask a model, and what it answers: the same for local models and endpoints."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from PIL import Image

from mathse.chat import user_message
from mathse.images import png


@dataclass
class Request:
    """A prompt and its samples. `seeds[k]` is the seed of sample k; `row` is the caller's."""

    row: dict
    messages: list[dict]
    seeds: dict[int, int]


def probe(text: str, has_image: bool = True) -> Request:
    """A question of ours, on which a model or a server is tried."""
    images = [png(Image.effect_noise((64, 64), 99))] if has_image else []
    return Request({"images": images}, user_message(text, images), {0: 0})


@dataclass
class Reply:
    """`finish`: stop, length (cut off at the token limit) or error (`text` is empty, `reason` says why).

    `seed`: the one that the model was given; None if it takes none, the same for samples drawn together.
    """

    row: dict
    sample: int
    text: str = ""
    finish: str = "stop"
    tokens: int = 0
    prompt_tokens: int = 0
    reason: str | None = None
    seed: int | None = 0

    def record(self, spec: str) -> dict:
        """The fields that a row gets (docs/RECORDS.md); `spec`: the model as the flag named it."""
        fields = {"sample": self.sample, "response": self.text, "finish": self.finish, "tokens": self.tokens}
        fields |= {"prompt_tokens": self.prompt_tokens, "model": spec, "seed": self.seed}
        return fields | ({"reason": self.reason} if self.reason else {})


class Generator:
    """An open model: requests in, a reply for each of their samples out, as it finishes, in any order."""

    def __call__(self, requests: Iterable[Request]) -> Iterator[Reply]:
        raise NotImplementedError

    def close(self) -> None:
        """Free what it holds, before another model is opened; a local model is gone with the stage."""
