"""Reading what OpenAI-compatible servers send: texts, tokens and errors, in the forms that are met."""

import json
import re
from dataclasses import dataclass, field

LENGTH = {"length", "max_tokens", "max_output_tokens"}  # finish reasons of a text that was cut off
BROKEN_OFF = {"error", "abort"}  # of one that the server failed to end
TEXT_PARTS = ("text", "output_text", None)  # types of a part of a content
CHARACTERS_A_TOKEN = 4  # a token, where a server does not count
RETRY_STATUS = {408, 409, 425, 429, 500, 502, 503, 504, 529}
KEY_STATUS = {401, 402, 403}  # the key or the account, not the request, is refused
PARAMETER_STATUS = {400, 422}
# An account without money, by an error's code or type, and in words. (Words such as "check your plan and
# billing details" also stand in refusals of too many requests a minute.)
NO_MONEY_CODE = re.compile(r"insufficient_quota|billing|exceeded_current_quota")
NO_MONEY_WORDS = re.compile(r"credit balance|insufficient (balance|credit|fund)", re.IGNORECASE)
UNSUPPORTED = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|extra|not (permitted|allowed)|cannot both"
    r"|deprecated",
    re.IGNORECASE,
)
# How an error names `n`, which no row needs: also where its value alone is refused, one by one will do.
SEVERAL = r"(?<!\\)\bn\b|one completion choice|candidate"


@dataclass
class Choice:
    """One text of a reply. `finish`: as in Reply; `characters`: of all that was written, thoughts too."""

    text: str
    finish: str
    reason: str | None
    characters: int
    token_logprobs: list[tuple[str, float]] = field(default_factory=list)


def read_completion(content: bytes) -> tuple[list[Choice], object]:
    """The texts of a reply, and its count of tokens. Raises ValueError and its like for what is no
    completion.
    """
    body = json.loads(content)
    choices = map(read_choice, body.get("choices") or [])
    return [choice for choice in choices if choice], body.get("usage")


def read_choice(choice: object) -> Choice | None:
    """A text, or the reason why there is none: it was paid and is final. None if the server broke it off.

    Servers have many names for an end (`stop`, `eos`, `end_turn`, none at all), so text with any finish
    reason is an answer. All tokens spent on thinking are a text of length 0 that was cut off.
    """
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return None
    said = str(choice.get("finish_reason") or "").lower()
    if said in BROKEN_OFF:
        return None
    text = joined(message.get("content")).strip()
    thoughts = joined(message.get("reasoning_content") or message.get("reasoning"))
    characters = len(text) + len(thoughts)
    if said in LENGTH:
        return Choice(text, "length", None, characters)
    if text and said != "content_filter":
        return Choice(text, "stop", None, characters, read_logprobs(choice.get("logprobs")))
    if refusal := joined(message.get("refusal")):
        return Choice("", "error", f"the model refuses: {refusal}", characters)
    only = ", only reasoning" if thoughts else ""
    return Choice("", "error", f"no text{only}, finish reason {said or None!r}", characters)


def read_logprobs(told: object) -> list[tuple[str, float]]:
    """Each token's text and log-probability, [] if they are not told. (A token may be a part of a character:
    then its text is what its bytes are so far.)
    """
    tokens = told.get("content") if isinstance(told, dict) else None
    pairs = [(token.get("token"), token.get("logprob")) for token in tokens or [] if isinstance(token, dict)]
    whole = all(isinstance(text, str) and isinstance(value, int | float) for text, value in pairs)
    return [(text, float(value)) for text, value in pairs] if whole else []


def joined(content: object) -> str:
    """A content as one text: a string, or a list of strings and typed parts (thoughts among them are not
    text).
    """
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [
        part.get("text") if isinstance(part, dict) and part.get("type") in TEXT_PARTS else part
        for part in parts
    ]
    return "".join(text for text in texts if isinstance(text, str))


def read_usage(usage: object, estimate: tuple[int, int]) -> tuple[int, int]:
    """(tokens read, tokens written) as a server counts them.

    Where it does not, or tells what cannot be a number of tokens, they are the estimate: so --max-cost holds
    for such servers too, as far as the estimate does.
    """
    told = usage if isinstance(usage, dict) else {}
    counts = told.get("prompt_tokens"), told.get("completion_tokens")
    return tuple(count if is_token_count(count) else guess for count, guess in zip(counts, estimate))


def is_token_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 32


def estimated_tokens(choices: list[Choice], limit: int) -> int:
    """Roughly the tokens of texts: one for some characters; the limit where a text was cut off."""
    written = [-(-choice.characters // CHARACTERS_A_TOKEN) for choice in choices]
    return sum(limit if choice.finish == "length" else few for choice, few in zip(choices, written))


def shares(total: int, weights: list[int]) -> list[int]:
    """A number in whole parts by weight. They add up to it."""
    parts = [total * weight // sum(weights) for weight in weights]
    return [parts[0] + total - sum(parts), *parts[1:]]


# ---------------------------------------------------------------- errors


@dataclass
class ServerError:
    """An error as a server tells it. `code`: its code and type; `parameter`: the one that it is about."""

    status: int
    words: str
    code: str
    parameter: str | None

    def kind(self) -> str:
        """What it means for the request: key, again or refused, as in Outcome."""
        if self.status in KEY_STATUS or NO_MONEY_CODE.search(self.code) or NO_MONEY_WORDS.search(self.words):
            return "key"
        return "again" if self.status in RETRY_STATUS else "refused"

    def refused_parameter(self, names: list[str]) -> str | None:
        """The first of the names that is refused as a parameter, whatever its value."""
        if self.status not in PARAMETER_STATUS:
            return None
        if not UNSUPPORTED.search(f"{self.code} {self.words}"):
            names = [name for name in names if name == "n"]
        if self.parameter in names:
            return self.parameter
        patterns = {name: SEVERAL if name == "n" else rf"\b{name}\b" for name in names}
        return next((name for name in names if re.search(patterns[name], self.words)), None)


def read_error(status: int, content: bytes) -> ServerError | None:
    """The error in a reply, which may come as HTTP 200 too. None if there is none."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    body = body[0] if isinstance(body, list) and body else body
    body = body if isinstance(body, dict) else {}
    told = body.get("error") or (body if body.get("object") == "error" else None)
    if status == 200 and (not told or body.get("choices")):
        return None
    fields = told if isinstance(told, dict) else body
    codes = [fields.get("code"), fields.get("status")]
    if status == 200:
        status = next((int(code) for code in codes if re.fullmatch(r"[45]\d\d", str(code))), 400)
    words = error_words(fields, told) or content[:1000].decode("utf-8", "replace")
    parameter = fields.get("param")
    code = f"{fields.get('code')} {fields.get('type')}"
    return ServerError(status, words, code, parameter if isinstance(parameter, str) else None)


def error_words(fields: dict, told: object) -> str:
    """What an error says, without the request that some servers repeat in it; "" if that is not found."""
    said = fields.get("message") or fields.get("detail") or told
    if isinstance(said, dict):
        said = said.get("detail")
    if isinstance(said, list):  # FastAPI: where in the request, and what
        items = [item for item in said if isinstance(item, dict)]
        said = "; ".join(f"{item.get('loc')}: {item.get('msg')}" for item in items)
    if not isinstance(said, str):
        return ""
    more = fields.get("metadata")  # OpenRouter: what the server behind it said
    return f"{said}: {more['raw']}" if isinstance(more, dict) and isinstance(more.get("raw"), str) else said
