"""The way to an OpenAI-compatible server: its address, the key, proxies, and the parameters that it takes."""

import argparse
import ipaddress
import json
import os
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import parse_qs, urlsplit

from mathse.records import fail

KEY_VARIABLE = "OPENAI_API_KEY"
MAX_PAUSE = 120.0  # seconds between two tries, also where the server asks for more
MAX_REPLY = 32 << 20  # bytes
# Parameters that a server may refuse, the one that is missed least first, and what is done then.
OPTIONAL = {
    "top_k": "left out from now on, and the server's own holds",
    "top_p": "left out from now on, and the server's own holds",
    "min_p": "left out from now on, and the server's own holds",
    "repetition_penalty": "left out from now on, and the server's own holds",
    "response_format": "replies keep to no schema from now on",
    "logprobs": "left out from now on, so orm_confidence is null",
    "seed": "left out from now on, and the rows' seed is null",
    "n": "samples are asked for one by one from now on",
    "max_tokens": "sent as max_completion_tokens from now on",
    "temperature": "left out from now on: replies are drawn at the server's own, not at --temperature",
}


class Connection:
    """A server at the address of a spec, `URL#model`.

    The key is read from the environment and is in no message, log or file.
    """

    def __init__(self, spec: str, args: argparse.Namespace):
        """Reach the server once. Ends the command if it cannot be reached or refuses the key."""
        import httpx

        self.spec = spec
        self.key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (self.key.isascii() and self.key.isprintable()):
            fail(f"{KEY_VARIABLE}: holds a character that no key has; set it anew")
        address = spec.partition("#")[0]
        self.url = place(address, "/chat/completions")
        try:
            self.client = httpx.Client(
                timeout=httpx.Timeout(args.timeout, connect=10),
                limits=httpx.Limits(max_connections=args.concurrency),
                headers=headers(address, self.key),
                verify=httpx.create_ssl_context(),  # by SSL_CERT_FILE, also without trust_env
                trust_env=not is_loopback(address),  # HTTP_PROXY and its like
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:  # SOCKS needs a package of its own
            fail(f"--model: {spec}: the proxy that the environment names cannot be used: {error}")
        self.is_vllm = self.reach(place(address, "/models"))

    def reach(self, url: str) -> bool:
        """Ask for the models; returns whether a vLLM has them. Many servers do not tell: only a refused
        key is a reason to stop."""
        import httpx

        try:
            with self.client.stream("GET", url, timeout=30) as answer:
                status, content = answer.status_code, next(answer.iter_bytes(1 << 16), b"")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            problem = f"the endpoint cannot be reached ({type(error).__name__}); is the server running?"
            fail(f"--model: {self.spec}: {problem}")
        if status == 401:
            fail(f"--model: {self.spec}: the endpoint refuses the key (HTTP 401); set {KEY_VARIABLE}")
        return b'"owned_by":"vllm"' in content.replace(b'": "', b'":"')

    def post(self, fields: dict, deadline: float) -> tuple[int, float | None, bytes]:
        """Ask for a chat completion: (status, seconds to wait by Retry-After, content).

        Raises httpx.HTTPError, also past the deadline: a server may send for ever.
        """
        import httpx

        with self.client.stream("POST", self.url, content=json.dumps(fields).encode()) as answer:
            content = bytearray()
            for chunk in answer.iter_bytes():
                content += chunk
                if len(content) > MAX_REPLY or time.monotonic() > deadline:
                    raise httpx.ReadTimeout("too long a reply")
            return answer.status_code, retry_after(answer.headers.get("retry-after")), bytes(content)

    def hide(self, text: str) -> str:
        """A server may repeat the key: cut it out. (A short one is a dummy for a local server, and a common
        word.)
        """
        return text.replace(self.key, "***") if len(self.key) >= 8 else text


class Parameters:
    """What a server is asked with. What it refuses once is not sent again, and a line says so once, however
    many requests are in flight.
    """

    def __init__(
        self, model: str, args: argparse.Namespace, logprobs: bool, schema: dict | None, is_vllm: bool
    ):
        self.model = model
        self.args = args
        self.always = {"logprobs": True} if logprobs else {}
        if schema:
            named = {"name": "reply", "strict": True, "schema": schema}
            self.always["response_format"] = {"type": "json_schema", "json_schema": named}
        if is_vllm:  # what is not said it takes from the model's folder: Qwen2-VL's says top_k 1
            self.always |= {"top_k": args.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0}
        self.refused = set()
        self.lock = threading.Lock()

    def of(self, seed: int, samples: int, temperature: float) -> dict:
        """The fields of a request, but for its messages."""
        fields = {
            "model": self.model,
            "max_tokens": self.args.max_tokens,
            "temperature": temperature,
            "top_p": self.args.top_p,
            "seed": seed,
            **({"top_k": self.args.top_k} if self.args.top_k else {}),
            **({"n": samples} if samples > 1 else {}),
            **self.always,
        }
        refused = frozenset(self.refused)  # as it is now: another thread may add to it
        if "max_tokens" in refused:
            fields["max_completion_tokens"] = self.args.max_tokens
        return {name: value for name, value in fields.items() if name not in refused}

    def refuse(self, name: str) -> None:
        with self.lock:
            if name not in self.refused:
                self.refused.add(name)
                print(f"endpoint: {name} is refused: {OPTIONAL[name]}", flush=True)


def place(address: str, path: str) -> str:
    """The URL of `path` at a server. A query, such as Azure's api-version, stays behind it; an address that
    names /chat/completions already means the server.
    """
    parts = urlsplit(address)
    base = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    return parts._replace(path=base + path).geturl()


def headers(address: str, key: str) -> dict[str, str]:
    """Azure, whose addresses have an api-version, reads a key from a header of its own."""
    names = {"Content-Type": "application/json"}
    if key:
        names["Authorization"] = f"Bearer {key}"
    if key and "api-version" in parse_qs(urlsplit(address).query):
        names["api-key"] = key
    return names


def is_loopback(address: str) -> bool:
    """Whether a server is on this machine, where no proxy leads to."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date, MAX_PAUSE at most.

    None if it says nothing.
    """
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return None
    return min(MAX_PAUSE, max(0.0, seconds)) if seconds == seconds else None
