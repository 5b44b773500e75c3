"""Prompts and messages -> what processors and endpoints read. Sampling and training render by the same
functions.

Messages are {"role", "content"} with texts; an IMAGE mark in a user's text stands for the next image of the
row.
"""

import functools
import itertools
import re

from mathse.records import IMAGE, PLACEHOLDERS


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
    """Text of a model or a data set in which every special token and placeholder is broken by a space."""
    return PLACEHOLDERS.sub(lambda match: match[0][0] + " " + match[0][1:], text)


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


@functools.lru_cache(maxsize=8)
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


def encode_prompts(processor, chats: list[list[dict]]) -> dict:
    """Chats with images -> left-padded tensors (B, T) and what the vision tower needs."""
    return processor.apply_chat_template(
        chats,
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
    texts = processor.apply_chat_template(
        [chat_parts(message) for message in messages], add_generation_prompt=True
    )
    start = texts[0].find(messages[0][-1]["content"].rpartition(IMAGE)[2])
    if start < 0 or any(text[:start] != texts[0][:start] for text in texts):
        return None
    tails = processor.tokenizer([text[start:] for text in texts], add_special_tokens=False)["input_ids"]
    if first[-len(tails[0]) :] != tails[0]:
        return None
    return [first[: -len(tails[0])] + tail for tail in tails]


def turn_end(processor) -> int | None:
    """The id of the token with which the chat template ends an assistant's turn: 04 teaches it, a reply ends
    with it, whatever EOS the model's folder names.

    None if the template writes no token there, as LLaVA-1.5's.
    """
    said = "the assistant's reply"
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]
    behind = processor.apply_chat_template(chat_parts(chat)).partition(said)[2]
    tokens = processor.tokenizer(behind.lstrip(), add_special_tokens=False)["input_ids"]
    return next((token for token in tokens if token in processor.tokenizer.added_tokens_decoder), None)
