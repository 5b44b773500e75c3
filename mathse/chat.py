"""Prompts and messages -> what processors and endpoints read. Sampling and training render by the same
functions.

Messages are {"role", "content"} with texts; an IMAGE mark in a user's text stands for the next image of the
row. Whatever else a text holds is text: a special token of the model that is written in it gets a space.
"""

import itertools
import re
from functools import lru_cache

from PIL import Image

from mathse.records import IMAGE

# A processor's outputs that have an entry a token; the others are about images.
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
TEMPLATE_FILES = "chat_template.jinja, chat_template.json, processor_config.json or tokenizer_config.json"


def fill(prompt: str, **fields: object) -> str:
    """Put fields into a prompt in one pass: braces in questions, responses and JSON examples stay as they
    are. IMAGE marks are places of images in the question alone.
    """

    def replace(match: re.Match) -> str:
        if match[1] not in fields:
            return match[0]
        text = str(fields[match[1]])
        return IMAGE.join(map(harmless, text.split(IMAGE) if match[1] == "question" else [text]))

    return re.sub(r"\{(\w+)\}", replace, prompt)


def harmless(text: str) -> str:
    """Text of a model or a data set in which our mark of an image is broken by a space."""
    return text.replace(IMAGE, f"{IMAGE[0]} {IMAGE[1:]}")


def question_text(problem: dict) -> str:
    """Question and lettered options; options that bring their own letters keep them. What the image shows
    (`options_drawn`) is not told again.
    """
    text = problem["question"].strip()
    options = [str(option) for option in problem.get("options") or []]
    letters = [chr(65 + index) for index in range(len(options))]
    if not options or options == letters or problem.get("options_drawn"):
        return text
    lettered = all(re.match(rf"\(?{letter}[).:]", option) for letter, option in zip(letters, options))
    lines = options if lettered else [f"{letter}. {option}" for letter, option in zip(letters, options)]
    return "\n".join([f"{text}\nChoices:", *lines])


def user_message(prompt: str, images: list) -> list[dict]:
    """A prompt with its images where its marks are or, without marks, in front: what is computed for them
    serves every sample of the problem.
    """
    marks = prompt.count(IMAGE)
    content = prompt if marks == len(images) else IMAGE * len(images) + without_marks(prompt)
    return [{"role": "user", "content": content}]


def without_marks(text: str, first: int = 1) -> str:
    """A text whose images stand in front of it, its sentences whole; `first`: its first image's number."""
    if first == text.count(IMAGE) == 1:
        return text.replace(IMAGE, "the image")
    number = itertools.count(first)
    return re.sub(IMAGE, lambda _: f"image {next(number)}", text)


def fitting(processor, messages: list[dict]) -> list[dict]:
    """Messages for a chat template: one that puts all images in front, as LLaVA's, gets no marks in texts."""
    if keeps_places(processor):
        return messages
    fitted = []
    for message in messages:
        text, marks = message["content"], message["content"].count(IMAGE)
        bare = re.sub(f"^({IMAGE})*", "", text)
        if message["role"] == "user" and IMAGE in bare:
            text = IMAGE * marks + without_marks(bare, marks - bare.count(IMAGE) + 1)
        fitted.append(message | {"content": text})
    return fitted


@lru_cache(maxsize=8)
def keeps_places(processor) -> bool:
    """Whether the chat template writes an image between two texts where it stands."""
    chat = chat_parts([{"role": "user", "content": f"in front{IMAGE}behind"}])
    return re.search(r"in front\s*\S.*behind", processor.apply_chat_template(chat), re.DOTALL) is not None


def chat_parts(messages: list[dict], images: list | None = None) -> list[dict]:
    """Messages -> the content lists that chat templates read and, given data URLs as images, endpoints."""
    left, chat = iter(images or []), []
    for message in messages:
        parts = []
        texts = message["content"].split(IMAGE) if message["role"] == "user" else [message["content"]]
        for index, text in enumerate(texts):
            if index:
                parts.append({"type": "image"} | ({"image": next(left)} if images else {}))
            if text:
                parts.append({"type": "text", "text": text})
        chat.append({"role": message["role"], "content": parts})
    return chat


# ---------------------------------------------------------------- a model's template and tokens


def row_errors() -> tuple[type[Exception], ...]:
    """What a template, a processor or a model can raise on the inputs of one row."""
    from jinja2 import TemplateError  # not to start a stage that has nothing to do

    return (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, TemplateError)


def prepare(processor) -> str:
    """Make a loaded processor ready to read chats, left-padded. Returns what it lacks, "" if nothing."""
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"
    processor.chat_template = chosen(processor.chat_template) or chosen(tokenizer.chat_template)
    if not processor.chat_template:
        return f"no chat template (default) in {TEMPLATE_FILES}; copy that of the model it was made from"
    image = Image.effect_noise((64, 64), 99).convert("RGB")
    text = "1 + 1\n= ?"
    chats = [chat_parts(user_message(text, images), images) for images in ([], [image])]
    said = chat_parts([{"role": "assistant", "content": text}])
    try:
        if tokenizer.pad_token is None:
            end = tokenizer.convert_ids_to_tokens(turn_end(processor) or 0)
            tokenizer.pad_token = tokenizer.eos_token or end
        bare, shown = (render(processor, chat + said) for chat in chats)
        if bare.count(text) != 2 or bare == shown:
            lacks = "an image" if bare == shown else "a text"
            return f"its chat template does not write {lacks} of a message's list; is it a text model's?"
        encode_prompts(processor, chats[1:])
    except row_errors() as error:
        reason = " ".join(str(error).split())[:200]
        return f"its processor cannot encode an image and a question: {type(error).__name__}: {reason}"
    return ""


def chosen(template: str | dict | list | None) -> str | None:
    """The template to use of those that a checkpoint may name: the default, or the only one."""
    if isinstance(template, list):
        template = {each["name"]: each["template"] for each in template}
    if isinstance(template, dict):
        template = template.get("default") or (template.popitem()[1] if len(template) == 1 else None)
    return template


@lru_cache(maxsize=4)
def special_tokens(tokenizer, *more: str | None) -> re.Pattern:
    """Finds the first character of each special token, and of `more`, in a text."""
    known = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = [name for name in known | {*tokenizer.all_special_tokens, *more} if name and len(name) > 1]
    firsts = "".join({re.escape(name[0]) for name in names}) or "<"
    found = "|".join(map(re.escape, names)) or "(?!)"
    return re.compile(rf"(?=[{firsts}])(?:(?={found}))(.)", re.DOTALL)


def as_text(processor, text: str) -> str:
    """The text with a space in each special token of the model that is written in it: < |im_end|>."""
    marks = (getattr(processor, f"{kind}_token", None) for kind in ("image", "video"))
    return special_tokens(processor.tokenizer, *marks).sub(r"\1 ", text)


def broken(processor, chat: list[dict]) -> list[dict]:
    """The chat with such texts."""

    def part_as_text(part: dict) -> dict:
        return part | {"text": as_text(processor, part["text"])} if "text" in part else part

    return [message | {"content": [*map(part_as_text, message["content"])]} for message in chat]


def render(processor, chat: list[dict], **flags: bool) -> str:
    """What the template makes of a chat, for token_ids()."""
    return processor.apply_chat_template(broken(processor, chat), **flags)


def token_ids(processor, texts: list[str]) -> list[list[int]]:
    """The tokens of rendered texts."""
    return processor.tokenizer(texts, add_special_tokens=False)["input_ids"]


def encode_prompts(processor, chats: list[list[dict]]) -> dict:
    """Chats with images -> left-padded tensors (B, T) and what the vision tower needs."""
    return processor.apply_chat_template(
        [broken(processor, chat) for chat in chats],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )


def encode_texts(processor, messages: list[list[dict]], first: list[int]) -> list[list[int]] | None:
    """Token ids of prompts that share their images; `first` is those of the first. Only the texts are
    tokenized.

    None if this tokenizer or template joins the text with what stands in front of it.
    """
    texts = [render(processor, chat_parts(message), add_generation_prompt=True) for message in messages]
    start = texts[0].find(as_text(processor, messages[0][-1]["content"].rpartition(IMAGE)[2]))
    if start < 0 or any(text[:start] != texts[0][:start] for text in texts):
        return None
    tails = token_ids(processor, [text[start:] for text in texts])
    if first[-len(tails[0]) :] != tails[0]:
        return None
    return [first[: -len(tails[0])] + tail for tail in tails]


def encode_groups(processor, groups: list[tuple[list[list[dict]], list]]) -> tuple[dict, list]:
    """(inputs of the first prompt of each group, left-padded; the token ids of all prompts of each). A group:
    prompts, each its messages, and the images that they share.
    """
    groups = [([fitting(processor, prompt) for prompt in prompts], images) for prompts, images in groups]
    inputs = encode_prompts(processor, [chat_parts(prompts[0], images) for prompts, images in groups])
    found = []
    for (prompts, images), ids, seen in zip(groups, inputs["input_ids"], inputs["attention_mask"].bool()):
        first = ids[seen].tolist()
        are_equal = all(prompt == prompts[0] for prompt in prompts)
        tokens = [first] * len(prompts) if are_equal else encode_texts(processor, prompts, first)
        if tokens is None:
            chats = ([chat_parts(prompt, images)] for prompt in prompts)
            tokens = [encode_prompts(processor, chat)["input_ids"][0].tolist() for chat in chats]
        found.append(tokens)
    return inputs, found


def turn_end(processor) -> int | None:
    """The id of the token with which the chat template ends an assistant's turn: 04 teaches it, a reply ends
    with it, whatever EOS the model's folder names.

    None if the template writes no token there, as LLaVA-1.5's.
    """
    said = "the assistant's reply"
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]
    behind = render(processor, chat_parts(chat)).partition(said)[2]
    (tokens,) = token_ids(processor, [behind.lstrip()])
    return next((token for token in tokens if token in processor.tokenizer.added_tokens_decoder), None)


def reply_ends(processor, generation_config) -> list[int]:
    """The tokens that end a reply: the template's, the tokenizer's and those of generation_config.json."""
    named = generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    ends = dict.fromkeys([turn_end(processor), processor.tokenizer.eos_token_id, *named])
    return [end for end in ends if end is not None]
