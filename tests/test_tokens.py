"""A model's own tokens: texts that hold them are text, a reply's end is its own, a template is found where
checkpoints keep it, and what is learnt stands behind the prompt that is sampled from.
"""

import argparse
import json
import shutil
import time
from functools import partial
from itertools import product

import pytest
import tiny
from conftest import read_rows, write_rows
from PIL import Image

import common
from mathse import chat
from mathse.generate.endpoint import read_choice
from mathse.records import read_rows as read_problems
from mathse.replies import without_end
from mathse.train.pack import reply_tokens
from mathse.train.plan import write_training_file

KINDS = ["qwen2_vl", "internvl", "idefics3", "llava", "gemma3"]
IMAGE = Image.effect_noise((64, 64), 99).convert("RGB")

# ---------------------------------------------------------------- special tokens in texts


def special_names(processor) -> list[str]:
    added = processor.tokenizer.added_tokens_decoder.values()
    return [token.content for token in added if token.special and len(token.content) > 1]


def asked_and(reply: str) -> list[dict]:
    return [{"role": "user", "content": "What?"}, {"role": "assistant", "content": reply}]


def learnt_of(processor, reply: str) -> list[int]:
    return reply_tokens(processor, [{"messages": asked_and(reply)}])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_hold_no_special_tokens(kind, tiny_model):
    """A prompt those of the template only, alone and beside a shorter one, a reply its end; and nothing but
    spaces has come into the text.
    """
    processor = common.load_processor(str(tiny_model(kind)))
    tokenizer, names = processor.tokenizer, special_names(processor)
    question = chat.harmless(" or ".join(["What is", *names]))

    def prompts(*texts: str) -> list[list[int]]:
        chats = [chat.chat_parts(chat.user_message(text, [IMAGE]), [IMAGE]) for text in texts]
        inputs = chat.encode_prompts(processor, chats)
        return [ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"])]

    (usual,), (alone,) = prompts("What is x?"), prompts(question)
    assert prompts("What is x?", question) == [usual, alone]
    specials = tokenizer.convert_tokens_to_ids(names)
    assert [each for each in alone if each in specials] == [each for each in usual if each in specials]
    said = chat.as_text(processor, question)
    assert said in tokenizer.decode(alone) and said.replace(" ", "") == question.replace(" ", "")
    messages = [chat.user_message(text, [IMAGE]) for text in (question, "What is x?", f"<pad>{question}")]
    assert chat.encode_texts(processor, messages, alone) == [alone, usual, *prompts(f"<pad>{question}")]
    learnt = learnt_of(processor, question)
    assert tokenizer.decode(learnt) == f"{said}<eos>"
    (end,) = (token for token in learnt if token < len(tiny.SPECIAL))
    assert end == tiny.IDS["<eos>"] == chat.turn_end(processor)


def test_tokens_that_overlap(tiny_model):
    processor = common.load_processor(str(tiny_model("llava")))
    processor.tokenizer.add_tokens(["<pad><e", "aa"], special_tokens=True)
    chat.special_tokens.cache_clear()
    (parts,) = chat.chat_parts([{"role": "user", "content": "<pad><eos> aaa"}])
    (ids,) = chat.encode_prompts(processor, [[parts]])["input_ids"].tolist()
    assert processor.tokenizer.decode(ids) == "<user>< pad>< eos> a a a<eos><reply>"
    assert sum(token < len(tiny.SPECIAL) or token >= len(tiny.SPECIAL) + 256 for token in ids) == 3


def test_a_question_with_tokens_is_one(tmp_path):
    row = {"id": "1", "question": "<|im_end|><|image_pad|></s>?", "options": ["<eos>", "2"], "answer": "2"}
    (found,) = read_problems(write_rows(tmp_path / "p.jsonl", [row]))
    assert row["question"] in common.solve_prompt(found) and "A. <eos>" in common.solve_prompt(found)


# ---------------------------------------------------------------- the end of a reply

CUT = "So it is 5."
KEPT = [  # what is no end
    "There are <|im_end|> two, so it is 2.", "<|im_end|> ends a turn, and `</s>` too.", "It is 5.  \n", "",
    "Two tokens: <|endoftext|>, </s>. So it is 2.", "<|begin_of_box|>5<|end_of_box|>", "|A|<|B|", "x<y>",
    "<think>2 + 3</think>", "2 + 3<|end|><|start|>assistant<|channel|>final<|message|>5.",
    "<|begin_of_thought|>2 + 3<|end_of_thought|>\n\n<|begin_of_solution|>5<|end_of_solution|>",
    "It is <s>4</s> 5, so 5.",
]  # fmt: skip
ENDS = [
    "<|im_end|>", "<|im_end|>\n", " <|eot_id|>", "</s>", "<s>", "<|endoftext|>", "<|eot_id|><|eot_id|>",
    "<|im_end|>\n<|im_end|> </s>", "<end_of_utterance>", "<end_of_turn>\n", "<turn|>", "<eos>", "<eoa>",
    "[UNUSED_TOKEN_145]", "[/INST]", " [end of text]", "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>",
    "<|end|>", "<|return|>", "<|an_end_that_nobody_knows|>", "<|im_end|>\n<|im_start|>user\nThanks",
    " <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nMore.", "</s><s>[INST] More [/INST]",
    "<|endoftext|>Human: and 2 + 2?", "</s>USER: and 2 + 2?", "<|user|>\nand 2 + 2?",
    "<start_of_turn>user\nand 2 + 2?", "\n<|im_start|>user\nand 2 + 2?", "<｜User｜>and 2 + 2?",
    "[INST] and 2 + 2?", "\n<|im_end|>\nMore.",
]  # fmt: skip


def test_the_end_marks_of_any_server_are_cut_off():
    for end, finish in product(ENDS, ("stop", "length")):  # it may write on behind it, up to the limit
        reply = read_choice({"message": {"content": CUT + end}, "finish_reason": finish})
        assert (reply.text, reply.finish) == (CUT, "stop"), end
    assert [without_end(text) for text in KEPT] == KEPT
    # a reply of end marks alone is no text
    assert read_choice({"message": {"content": "<|im_end|>"}, "finish_reason": "stop"}).finish == "error"


def test_no_text_takes_long():
    for text in (" ", "<|im_end|> ", " <|im_end|>", "<", "<|a", "<|" + "a" * 9, "[", "</s>"):
        begun = time.process_time()
        without_end(text * 30_000 + "x")
        without_end("x" + text * 30_000)
        assert time.process_time() - begun < 2, text


def test_end_marks_are_neither_judged_nor_learnt(run, stage, tmp_path):
    """Of a file that another tool has sampled: 02's rows and 04's training file, which may be its input."""
    row = {"question": "What is 2 + 3?", "answer": "5", "images": [], "prompt": "2 + 3?", "sample": 0}
    row |= {"finish": "stop", "origin": "teacher", "model": "m", "seed": 1, "draft_of": None}
    said = "I add. The answer to this problem is 5."
    rows = [row | {"id": str(number), "response": said + end} for number, end in enumerate(ENDS)]
    rows[1]["finish"] = "length"  # its server wrote on
    samples, output = write_rows(tmp_path / "samples.jsonl", rows), tmp_path / "verified.jsonl"
    done = run("02_verify.py", "--input", samples, "--output", output, "--accept", "answer")
    assert done.returncode == 0, done.stderr
    verified = read_rows(output)
    assert [(row["status"], row["response"]) for row in verified] == [("correct", said)] * len(ENDS)
    make = partial(stage("04_finetune").training_row, args=argparse.Namespace(orm=False, binary=False))

    def learnt(rows: list[dict]) -> list[dict]:
        source = write_rows(tmp_path / "input.jsonl", rows)
        chosen = {(str(source), row["id"], row["sample"]) for row in rows}
        made = read_rows(write_training_file(tmp_path / "t.jsonl", [str(source)], 0, lambda: chosen, make))
        assert [row["messages"][-1]["content"] for row in made] == [said] * len(ENDS)
        return made

    made = learnt(verified)
    for row, end in zip(made, ENDS):
        row["messages"][-1]["content"] += end
    learnt(made)


# ---------------------------------------------------------------- what is learnt is what is sampled

EOU = "<end_of_utterance>"
TURN = "{{ role }}: {{ text }}"
SYSTEM = "{% if loop.first and role != 'system' %}system: Help.<eos>\n{% endif %}"
ANSWER = "{{ text.split('</think>')[-1].strip() }}"
THOUGHT = "{{ text.split('</think>')[0].split('<think>')[-1].strip() if '</think>' in text }}"
CLOSED = (  # as Qwen3-VL-Thinking: a turn without a thought gets an empty one
    "{{ role }}:{% if role == 'assistant' %}<think>\n" + THOUGHT + "\n</think>\n\n" + ANSWER + "{% else %}"
    "{{ text }}{% endif %}<eos>\n"
)  # fmt: skip
OPEN = "assistant:<think>\n"
SHAPES = [  # (turn, generation prompt, reply, what is learnt, the token that ends a turn)
    (TURN + "<eos>\n", "assistant:", "4.", " 4.<eos>", "<eos>"),  # Qwen and Idefics break the line behind it
    (TURN + " ", "assistant:", "4.", " 4.<eos>", None),  # LLaVA-1.5 writes no end
    (TURN + "\n###", "assistant:", "4.", " 4.<eos>", None),  # no token: a reply would never end there
    ("{{ role }}: {{ text | trim }}" + EOU, "assistant:", "4.", " 4." + EOU, EOU),
    (TURN + "\n" + EOU + "<eos>", "assistant:", "4.", " 4.\n" + EOU, EOU),  # where a reply ends
    (TURN + "<eos>", "assistant:", "4.<eos>", " 4.<eos>", "<eos>"),
    (TURN + "<eos>\n", "assistant:", "", " <eos>", "<eos>"),
    (TURN + "<eos>\n", "assistant:", "s", " s<eos>", "<eos>"),  # a letter of the end's name
    (SYSTEM + TURN + "<eos>", "assistant:", "4.", " 4.<eos>", "<eos>"),
    ("{{ bos_token }}" + TURN + EOU, "{{ 'assistant: ' }}", "4.", "4." + EOU, EOU),
    # what a template writes in front of a reply stands there once, also where it has been sampled
    ("{{ role }}: <think></think>{{ text }}<eos>", "assistant:", "4.", " <think></think>4.<eos>", "<eos>"),
    # some take the reasoning out of a reply: what stands in the row is learnt
    ("{{ role }}: " + ANSWER + EOU, "assistant:", "<think>2</think>4.", "<think>2</think>4." + EOU, EOU),
    # a thought that the prompt opens is not opened again
    ("{{ role }}: " + ANSWER + EOU, OPEN, "<think>\n2</think>4.", "2</think>4." + EOU, EOU),
    ("{{ role }}: " + ANSWER + EOU, OPEN, "2</think>4.", "2</think>4." + EOU, EOU),
    ("{{ role }}: " + ANSWER + EOU, OPEN, "4.", "4." + EOU, EOU),
    (TURN + "<eos>", "assistant: ◁think▷", "◁think▷2◁/think▷4.", "2◁/think▷4.<eos>", "<eos>"),
    (TURN + "<eos>", OPEN + "</think>\n", "<think>2</think>4.", "<think>2</think>4.<eos>", "<eos>"),
    (CLOSED, OPEN, "<think>\n2\n</think>\n\n4.", "2\n</think>\n\n4.<eos>", "<eos>"),
    (CLOSED, OPEN, "2</think>4.", "2</think>4.<eos>", "<eos>"),
    (CLOSED, OPEN, "4.", "\n</think>\n\n4.<eos>", "<eos>"),
]  # fmt: skip


def processor_with(turn: str, opening: str, **special) -> argparse.Namespace:
    """A processor whose chat template writes turns, and the generation prompt, in this way."""
    tokenizer = tiny.make_tokenizer()
    for name, value in special.items():
        setattr(tokenizer, name, value)
    head = "{% for m in messages %}{% set role, text = m['role'], m['content'][0]['text'] %}"
    template = head + turn + "{% endfor %}{% if add_generation_prompt %}" + opening + "{% endif %}"

    def apply(parts, **flags):
        return tokenizer.apply_chat_template(parts, chat_template=template, tokenize=False, **flags)

    return argparse.Namespace(tokenizer=tokenizer, apply_chat_template=apply)


@pytest.mark.parametrize("turn, opening, reply, learnt, end", SHAPES)
def test_what_is_learnt_is_what_is_sampled(turn, opening, reply, learnt, end):
    """Also of a sample of what has been learnt; and the template writes no more than that in a whole chat,
    unless it rewrites the reply."""
    processor = processor_with(turn, opening)
    tokenizer, tokens = processor.tokenizer, learnt_of(processor, reply)
    assert tokenizer.decode(tokens) == learnt
    assert chat.turn_end(processor) == (end and tokenizer.convert_tokens_to_ids(end))
    sampled = tokenizer.decode(tokens[:-1], skip_special_tokens=True).strip()
    assert learnt_of(processor, sampled) == tokens
    asked = chat.chat_parts(asked_and(sampled)[:1])
    said = {"role": "assistant", "content": [{"type": "text", "text": sampled}]}
    head = chat.render(processor, asked, add_generation_prompt=True)
    whole = chat.render(processor, [*asked, said])
    (prompt,) = chat.token_ids(processor, [head])
    assert tokenizer.decode(prompt + tokens) == head + learnt
    if sampled == reply and end and whole.startswith(head) and sampled in whole:
        assert whole.startswith(head + learnt)


def test_a_model_whose_replies_have_no_end_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        learnt_of(processor_with("{{ role }}: {{ text }} ", "assistant:", eos_token=None), "4.")
    assert "names a token that ends a reply; set eos_token" in capsys.readouterr().err


# ---------------------------------------------------------------- where a template stands

PLAIN = tiny.template("<image>")
STRINGS = (  # what a user says is a list, what the assistant says a text
    "{% for m in messages %}{% if m['role'] == 'user' %}{% for p in m['content'] %}"
    "{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
NO_IMAGES = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
NONE, UNUSABLE = "no chat template (default) in ", "cannot encode an image and a question: "


def named(*names: str) -> list[dict]:
    return [{"name": name, "template": PLAIN} for name in names]


PLACES = [  # (file, content, what is wrong)
    ("chat_template.jinja", PLAIN, ""),
    ("chat_template.json", {"chat_template": PLAIN}, ""),
    ("chat_template.json", {"chat_template": named("default", "rag")}, ""),
    ("processor_config.json", PLAIN, ""),
    ("processor_config.json", {"default": PLAIN, "tool_use": "no"}, ""),
    ("tokenizer_config.json", PLAIN, ""),
    ("tokenizer_config.json", named("default", "tool_use"), ""),
    ("tokenizer_config.json", named("chat"), ""),
    ("additional_chat_templates/default.jinja", PLAIN, ""),
    ("tokenizer_config.json", named("rag", "tool_use"), NONE),
    ("tokenizer_config.json", None, NONE),
    ("tokenizer_config.json", "", NONE),
    ("chat_template.jinja", "{% for", UNUSABLE + "TemplateSyntaxError"),
    ("chat_template.jinja", "{{ nothing.at.all }}", UNUSABLE + "Undefined"),
    ("chat_template.jinja", "{{ raise_exception('no list') }}", "TemplateError: no list"),
    ("chat_template.jinja", "{{ messages[0]['content'] }}", "does not write a text"),
    ("tokenizer_config.json", NO_IMAGES, "does not write an image"),
    ("chat_template.jinja", STRINGS, "does not write a text"),
]


@pytest.mark.parametrize("file, content, problem", PLACES)
def test_a_template_is_found_or_one_line_says_so(file, content, problem, tiny_model, tmp_path, capsys):
    spec = shutil.copytree(tiny_model("llava"), tmp_path / "model")
    (spec / "chat_template.jinja").unlink()
    path = spec / file
    path.parent.mkdir(exist_ok=True)
    if file.endswith("_config.json"):
        tiny.edit(path, chat_template=content)
    else:
        path.write_text(content if path.suffix == ".jinja" else json.dumps(content))
    if not problem:
        processor = common.load_processor(str(spec))
        asked = chat.chat_parts(chat.user_message("x", ["an image"]))
        assert chat.render(processor, asked, add_generation_prompt=True) == "<user><image>x<eos><reply>"
        return
    with pytest.raises(SystemExit, match="2"):
        common.load_processor(str(spec))
    found = capsys.readouterr().err
    assert found.startswith(f"error: --model: {spec}: ") and found.count("\n") == 1 and problem in found
