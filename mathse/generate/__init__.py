"""Text from a model, local or behind an endpoint: open_model(spec, args, load) is all that a stage needs."""

from mathse.generate.open import open_model
from mathse.generate.types import Generator, Repeats, Reply, Request

__all__ = ["Generator", "Repeats", "Reply", "Request", "open_model"]
