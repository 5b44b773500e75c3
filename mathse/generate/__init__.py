"""Text from a model, local or behind an endpoint: open_model(spec, args, load) is all that a stage needs."""

import argparse
from collections.abc import Callable

from mathse.generate.endpoint import Endpoint
from mathse.generate.serve import Served
from mathse.generate.types import Generator, Reply, Request
from mathse.records import is_endpoint

__all__ = ["Generator", "Reply", "Request", "open_model"]


def open_model(spec: str, args: argparse.Namespace, load: Callable, schema: dict | None = None) -> Generator:
    """Reach the endpoint, serve the model (--serve), or load it by load(spec, trust_remote_code) -> (model,
    processor).

    `args`: the flags of cli.add_generation_flags. `schema`: a JSON schema that replies keep to, if a server
    takes one; a local model does not.
    """
    if is_endpoint(spec):
        return Endpoint(spec, args, schema)
    if args.serve:
        return Served(spec, args, schema)
    from mathse.generate.engine import Engine  # imports torch

    return Engine(*load(spec, args.trust_remote_code), args)
