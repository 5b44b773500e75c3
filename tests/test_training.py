"""Fine-tuning tiny random models of seven architectures: what is learnt, and that it is learnt exactly."""

import argparse
import fcntl
import functools
import inspect
import json
import math
import os
import pickle
import random
import shutil
import sys
from collections import Counter

import numpy as np
import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, read_rows, write_rows
from PIL import Image
from safetensors.torch import load_file

import common
from mathse.chat import user_message
from mathse.generate import open_model
from mathse.generate.types import Request
from mathse.train import packing, session
from mathse.train.data import IGNORE, MicroBatches, as_arrays, prefetch_batches, reply_tokens
from mathse.train.model import set_up_model
from mathse.train.packing import ROUNDING, how_far_off
from mathse.train.rows import TrainingRows, deal, plan_steps, write_training_file

KINDS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "llava", "llava_onevision"]
FLAGS = ["--max-pixels", 10_000, "--workers", 0, "--processes", 1]
SETTINGS = argparse.Namespace(max_pixels=10_000, max_length=2000)


def row(name: str, sample: int, images: list[str], prompt: str, reply: str) -> dict:
    return {
        "messages": [*user_message(prompt, images), {"role": "assistant", "content": reply}],
        "images": images,
        "id": name,
        "sample": sample,
        "origin": "teacher",
    }


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    for index in range(3):
        noise = np.random.default_rng(index).integers(
            0, 256, (30 + 9 * index, 40 + 20 * index, 3), dtype=np.uint8
        )
        Image.fromarray(noise).save(folder / f"{index}.png")
    return [str(folder / f"{index}.png") for index in range(3)]


@pytest.fixture(scope="module")
def mixed_rows(images) -> list[dict]:
    """Three answers of a problem, one to two images, text only, and what a judge is shown: two
    candidates of a problem.
    """
    rows = [
        row("a", k, images[:1], "What is it?", reply)
        for k, reply in enumerate(["one", "a longer reply it is", "third"])
    ]
    rows += [
        row("b", 0, images[1:], "And these?", "yes"),
        *(row("c", k, [], "Text only?", reply) for k, reply in enumerate(["no", "well, hm"])),
    ]
    return rows + [
        row("d", k, images[2:], f"Is {'very ' * k}right right?\nCheck.", f"verdict {k}") for k in range(2)
    ]


@pytest.fixture
def mixed_file(mixed_rows, tmp_path):
    return write_rows(tmp_path / "rows.jsonl", mixed_rows)


@pytest.fixture
def eight_file(images, tmp_path):
    return write_rows(
        tmp_path / "rows.jsonl",
        [
            row(str(k), 0, images[k % 3 : k % 3 + k % 2], f"Number {k}?", f"It is {k}{'!' * k}")
            for k in range(8)
        ],
    )


@pytest.fixture
def finetune(stage, monkeypatch, capsys):
    """Call 04_finetune.py in this process, which saves the time to load torch; what it printed. A
    mistake raises SystemExit.
    """

    def call(*flags: object) -> str:
        AcceleratorState._reset_state(True)  # a stage begins without
        # in a fork of a process that has used threads, torch must not start any
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))
        monkeypatch.setattr(sys, "argv", ["04_finetune.py", *map(str, [*FLAGS, *flags])])
        stage("04_finetune").main()
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="session")
def token_loss(stage):
    return stage("04_finetune").token_loss


def gradients(model) -> dict[str, torch.Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Every gradient within 1e-4 of its size; of those that are nothing but rounding, of the largest
    gradient's size.
    """
    floor = 1e-4 * max(gradient.norm() for gradient in theirs.values())
    assert {name for name, gradient in ours.items() if gradient.norm() > floor} <= theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-4 * max(gradient.norm(), floor), name


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_one_row_at_a_time(
    kind, tiny_model, mixed_file, mixed_rows, token_loss
):
    """Packed with shared prompts, and padded, against full logits of one unpadded sequence a row; labels
    cover the reply and its end.
    """
    spec = str(tiny_model(kind))
    processor, model = common.load_processor(spec), common.load_model(spec, "cpu", torch.float32)
    rows = TrainingRows(mixed_file)
    numbers = deal(rows, list(range(len(rows))), 100, 1)[0][0]
    total, labels = 0.0, []
    for number in numbers:
        batch, _ = MicroBatches(rows, [[number]], processor, SETTINGS, packed=False)[0]
        learnt = batch.targets[0][batch.targets[0] != IGNORE]
        labels += learnt.tolist()
        logits = model(
            **{name: value for name, value in batch.inputs.items() if name != "logits_to_keep"},
            use_cache=False,
        ).logits[0, -len(learnt) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits.float(), learnt, reduction="sum")
        assert processor.tokenizer.decode(learnt) == rows[number]["messages"][-1]["content"] + "<eos>"
    total.backward()
    expected = gradients(model)
    pack = packing.Packing(model, token_loss)
    for packed in (True, False):
        model.zero_grad()
        pack.use(packed)
        batch, left_out = MicroBatches(rows, [numbers], processor, SETTINGS, packed)[0]
        assert left_out == 0 and batch.targets[batch.targets != IGNORE].tolist() == labels
        loss = pack.losses(model, batch).sum()
        assert loss.item() == pytest.approx(total.item(), rel=1e-5)
        loss.backward()
        assert_equal(gradients(model), expected)
        if packed:  # no padding, and each question once
            singles = [
                len(processor.tokenizer(prompt)["input_ids"]) for prompt in ("What is it?", "Text only?")
            ]
            assert (
                batch.inputs["input_ids"].shape == (1, batch.tokens)
                and sum(map(bool, batch.shared)) == 3
                and sum(batch.shared) > sum(singles)
            )
            tokens = batch.tokens
        else:
            assert batch.tokens > 1.3 * tokens
    packed, padded = (
        MicroBatches(rows, [numbers], processor, SETTINGS, kind)[0][0] for kind in (True, False)
    )
    assert pack.difference(model, packed, padded) < 1e-5 and pack.difference(model, padded, padded) < 1e-5


def processor_with(turn: str) -> argparse.Namespace:
    """A processor whose chat template writes turns in this way."""
    tokenizer = tiny.make_tokenizer()
    template = (
        "{% for m in messages %}{% set role, text = m['role'], m['content'][0]['text'] %}"
        + turn
        + "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    return argparse.Namespace(
        tokenizer=tokenizer,
        apply_chat_template=lambda chat, **flags: tokenizer.apply_chat_template(
            chat, chat_template=template, tokenize=False, **flags
        ),
    )


@pytest.mark.parametrize(
    "turn, learnt",
    [
        ("{{ role }}: {{ text }}<eos>\n", " It is 4.<eos>"),  # Qwen and Idefics break the line behind the end
        ("{{ role }}: {{ text }} ", " It is 4.<eos>"),  # LLaVA-1.5 writes no end
        ("{{ role }}: {{ text | trim }}<end_of_utterance>", " It is 4.<end_of_utterance>"),
        ("{{ role }}: <think></think>{{ text }}<eos>", " <think></think>It is 4.<eos>"),
    ],
)
def test_the_last_label_is_the_end(turn, learnt):
    processor = processor_with(turn)
    tokenizer = processor.tokenizer
    rows = [row("a", 0, [], "What is it?", reply) for reply in ("It is 4.", "")]
    first, empty = map(tokenizer.decode, reply_tokens(processor, rows))
    assert first == learnt and empty.count("<eos>") + empty.count("<end_of_utterance>") == 1


def test_a_reply_that_the_template_rewrites_is_learnt_as_it_stands():
    """Some templates take the reasoning out of a reply: what stands in the row is learnt, and the end is
    the template's.
    """
    turn = "{{ role }}: {{ text.split('</think>')[-1] }}<end_of_utterance>\n"
    processor = processor_with(turn)
    (tokens,) = reply_tokens(processor, [row("a", 0, [], "What is it?", "<think>2 + 2</think>It is 4.")])
    assert processor.tokenizer.decode(tokens) == "<think>2 + 2</think>It is 4.<end_of_utterance>"


def test_a_wrong_loss_is_noticed(tiny_model, mixed_file, token_loss, monkeypatch):
    spec = str(tiny_model("qwen2_vl"))
    processor, model = common.load_processor(spec), common.load_model(spec, "cpu", torch.float32)
    rows = TrainingRows(mixed_file)
    packed, padded = (
        MicroBatches(rows, [list(range(len(rows)))], processor, SETTINGS, kind)[0][0]
        for kind in (True, False)
    )
    positions = packing.Packing.positions
    monkeypatch.setattr(packing.Packing, "positions", lambda self, batch: positions(self, batch) * 2)
    accelerator = argparse.Namespace(mixed_precision="no")
    assert "the loss is off by" in packing.why_not(
        accelerator, packing.Packing(model, token_loss), model, packed, padded
    )


def test_a_model_that_bounds_its_logits_is_learnt_by_its_own_loss(
    tiny_model, mixed_file, tmp_path, finetune, monkeypatch, capsys
):
    """Gemma 4 and Granite go on computing with what the output layer returns: that must be logits then."""
    from transformers import Qwen2VLForConditionalGeneration as Model

    flags = ["--input", mixed_file, "--model", tiny_model("qwen2_vl"), "--batches"]
    for batches in ("packed", "padded"):
        finetune(*flags, batches, "--output", tmp_path / f"plain-{batches}")
    forward, scale = Model.forward, [1.0]

    def scaled(self, *arguments, **settings):
        output = forward(self, *arguments, **settings)
        output.logits = output.logits / scale[0]
        return output

    scaled.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(Model, "forward", scaled)
    for batches in ("packed", "padded"):
        finetune(*flags, batches, "--output", tmp_path / f"one-{batches}")
        assert losses(tmp_path / f"plain-{batches}") == pytest.approx(
            losses(tmp_path / f"one-{batches}"), rel=1e-5
        )
    scale[0] = 1e6
    assert "loss of whole logits: the loss is off by" in finetune(
        *flags, "padded", "--output", tmp_path / "million"
    )
    # all tokens are as likely
    assert losses(tmp_path / "million") == pytest.approx([math.log(len(tiny.SPECIAL) + 256)], rel=1e-4)
    with pytest.raises(SystemExit, match="2"):
        finetune(*flags, "packed", "--output", tmp_path / "refused")
    assert one_error(capsys, "--batches packed", "the loss is off by", "--batches padded")


def one_error(capsys, *words: str) -> bool:
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return len(errors) == 1 and all(word in errors[0] for word in words)


def test_a_first_step_without_any_usable_row_ends_in_one_line(
    tiny_model, eight_file, tmp_path, finetune, capsys
):
    with pytest.raises(SystemExit, match="2"):
        finetune(
            "--input",
            eight_file,
            "--output",
            tmp_path / "m",
            "--model",
            tiny_model("qwen2_vl"),
            "--max-length",
            5,
        )
    assert "no row of the first step can be used" in capsys.readouterr().err


def test_a_model_that_drops_attention_is_not_packed(tiny_model, mixed_file, tmp_path, finetune, capsys):
    """The check at the start goes without dropout and would not see it."""
    folder = tmp_path / "dropout"
    shutil.copytree(tiny_model("qwen2_vl"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    flags = ["--input", mixed_file, "--output", tmp_path / "m", "--model", folder]
    with pytest.raises(SystemExit, match="2"):
        finetune(*flags)
    assert one_error(capsys, "attention_dropout 0.5; set --batches padded")
    assert (
        "batches: padded" in finetune(*flags, "--batches", "padded", "--force")
        and len(losses(tmp_path / "m")) == 1
    )


def test_a_model_that_cannot_be_packed_is_refused_by_name_and_trains_padded(
    tiny_model, mixed_file, tmp_path, finetune, capsys
):
    flags = ["--input", mixed_file, "--model", tiny_model("llava_sliding"), "--epochs", 2]
    with pytest.raises(SystemExit, match="2"):
        finetune(*flags, "--output", tmp_path / "m")
    assert one_error(
        capsys,
        "--batches packed: rows of this model cannot be packed: ValueError: its attention is not full",
        "attention; set --batches padded",
    )
    assert "batches: padded, rows of like length together\n" in finetune(
        *flags, "--output", tmp_path / "p", "--batches", "padded"
    )
    assert len(losses(tmp_path / "p")) == 1
    flags = ["--input", mixed_file, "--model", tiny_model("llava")]
    assert "batches: packed, a prompt once for its rows: " in finetune(*flags, "--output", tmp_path / "q")


@pytest.mark.parametrize("way", ["autocast", "weights"])
def test_packed_in_bf16(way, tiny_model, mixed_file, token_loss):
    """As on a GPU: computed in bf16 from fp32 weights, or all in bf16; within its precision of fp32, and
    with gradients.
    """
    spec = str(tiny_model("qwen2_vl"))
    processor, rows = common.load_processor(spec), TrainingRows(mixed_file)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        pack = packing.Packing(
            common.load_model(spec, "cpu", dtype if way == "weights" else torch.float32), token_loss
        )
        pack.use(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast" and dtype == torch.bfloat16):
            results.append(
                pack.losses(
                    pack.model, MicroBatches(rows, [list(range(len(rows)))], processor, SETTINGS, True)[0][0]
                )
            )
        results[-1].sum().backward()
        assert all(gradient.isfinite().all() for gradient in gradients(pack.model).values())
    assert results[1].dtype == torch.float32 and 0 < (results[0] - results[1]).abs().max() < 0.05


def test_logits_in_chunks(tiny_model, mixed_file, token_loss, monkeypatch):
    """Loss and gradients do not hang on how many logits are computed at a time."""
    spec = str(tiny_model("qwen2_vl"))
    processor, model = common.load_processor(spec), common.load_model(spec, "cpu", torch.float32)
    pack, sizes = packing.Packing(model, token_loss), []
    pack.use(True)
    batch, _ = MicroBatches(TrainingRows(mixed_file), [list(range(8))], processor, SETTINGS, True)[0]
    project = pack.head.project
    pack.head.project = lambda hidden: sizes.append(len(hidden)) or project(hidden)
    results = []
    for chunk in (1 << 24, 5 * pack.head.vocabulary):
        monkeypatch.setattr(packing, "CHUNK", chunk)
        model.zero_grad()
        loss = pack.losses(model, batch).sum()
        loss.backward()
        results.append((loss.item(), gradients(model)))
    assert (
        results[0][0] == pytest.approx(results[1][0], rel=1e-6)
        and sizes[0] == batch.labels
        and max(sizes[1:]) == 5
    )
    assert_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("kind", KINDS)
def test_overfits_then_answers(kind, tiny_model, eight_file, finetune, tmp_path):
    flags = ["--input", eight_file, "--output", tmp_path / "model", "--model", tiny_model(kind)]
    finetune(*flags, "--epochs", 250, "--lr", "1e-2", "--batch-size", 8, "--micro-batch", 8, "--warmup", 0.05)
    flags = argparse.Namespace(
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        max_tokens=16,
        max_pixels=10_000,
        batch_size=64,
        trust_remote_code=False,
        serve=None,
        processes=1,
    )
    rows = read_rows(eight_file)
    replies = open_model(str(tmp_path / "model"), flags, common.load)(
        Request(row, row["messages"][:1], {0: 0}) for row in rows
    )
    assert {reply.row["id"]: reply.text for reply in replies} == {
        row["id"]: row["messages"][1]["content"] for row in rows
    }


def losses(folder) -> list[float]:
    return [entry["loss"] for entry in read_rows(folder / "train_log.jsonl")]


def test_training_resumes_exactly(tiny_model, mixed_file, tmp_path, monkeypatch, finetune):
    """Stopped after a checkpoint and called again: the same log as a run without a stop."""
    flags = [
        "--input",
        mixed_file,
        "--model",
        tiny_model("llava"),
        "--epochs",
        3,
        "--lr",
        "1e-3",
        "--batch-size",
        2,
        "--save-steps",
        3,
    ]
    finetune(*flags, "--output", tmp_path / "whole")
    saved, calls = session.save_checkpoint, []

    def stop_after_two(*arguments):
        saved(*arguments)
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(session, "save_checkpoint", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        finetune(*flags, "--output", tmp_path / "stopped")
    assert "resumed at step 6" in finetune(*flags, "--output", tmp_path / "stopped")
    assert (
        losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "stopped"), rel=1e-5)
        and len(losses(tmp_path / "whole")) == 12
    )
    whole, stopped = (
        json.loads((tmp_path / name / "recipe.json").read_text()) for name in ("whole", "stopped")
    )
    assert whole["label_tokens"] == stopped["label_tokens"] > 0


def test_a_checkpoint_of_several_gpus_is_not_gone_on_with_by_one(
    tiny_model, eight_file, tmp_path, finetune, capsys
):
    flags = [
        "--input",
        eight_file,
        "--output",
        tmp_path / "m",
        "--model",
        tiny_model("llava"),
        "--max-length",
        5,
    ]
    with pytest.raises(SystemExit):  # no row is usable: the folder is begun, not more
        finetune(*flags)
    (tmp_path / "m.part" / "checkpoint-2" / "pytorch_model_fsdp_0").mkdir(parents=True)
    with pytest.raises(SystemExit, match="2"):
        finetune(*flags)
    assert "checkpoint-2: was saved by several GPUs; go on with several, or remove" in capsys.readouterr().err


@pytest.mark.parametrize("batches", ["packed", "padded"])
def test_two_processes_train_alike(batches, tiny_model, mixed_file, tmp_path, finetune, run_two):
    """Two CPU processes take the same steps as one, also where three micro-batches are dealt to two, and
    some have no image.
    """
    flags = [
        "--input",
        mixed_file,
        "--model",
        tiny_model("llava"),
        "--batches",
        batches,
        "--epochs",
        3,
        "--lr",
        "1e-3",
        "--batch-size",
        5,
        "--micro-batch",
        2,
        "--hold-out",
        1,
    ]
    finetune(*flags, "--output", tmp_path / "one")
    two = run_two("04_finetune.py", *flags, *FLAGS, "--output", tmp_path / "two")
    assert two.returncode == 0, two.stderr[-2000:]
    finetune(*flags, "--output", tmp_path / "forked", "--processes", 2)
    held = [
        [
            entry["validation_loss"]
            for entry in read_rows(tmp_path / name / "train_log.jsonl")
            if "validation_loss" in entry
        ]
        for name in ("one", "two", "forked")
    ]
    for name, losses_held in zip(("two", "forked"), held[1:]):
        assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / name), rel=1e-4)
        assert held[0] == pytest.approx(losses_held, rel=1e-4) and len(held[0]) == 3


@pytest.mark.parametrize("first, then", [(2, 1), (1, 2)])
def test_a_training_goes_on_with_another_number_of_processes(
    first, then, tiny_model, mixed_file, tmp_path, finetune, monkeypatch
):
    flags = ["--input", mixed_file, "--model", tiny_model("llava"), "--epochs", 3, "--lr", "1e-3"]
    flags += ["--batch-size", 5, "--save-steps", 2]
    finetune(*flags, "--output", tmp_path / "whole")
    output = tmp_path / "moved"

    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(session.Session, "save", stop)
        with pytest.raises((Stopped, RuntimeError)):
            finetune(*flags, "--output", output, "--processes", first)
    printed = finetune(*flags, "--output", output, "--processes", then)
    assert then == 2 or "resumed at step 4" in printed  # the forks print past what is caught
    assert losses(output) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    weights = [load_file(folder / "model.safetensors") for folder in (output, tmp_path / "whole")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in weights[0])


@pytest.mark.parametrize(
    "kind, bf16, more",
    [("llava", "0", []), ("qwen2_vl", "1", ["--lora", 4, "--freeze", "vision", "--recompute", 0.5])],
    ids=["all", "adapters"],
)
def test_a_sharded_model_trains_alike(kind, bf16, more, tiny_model, mixed_file, tmp_path, finetune, run_two):
    """Two processes that each hold half of the model (FSDP2), killed after a sharded checkpoint and
    called again: the steps and the weights of one process.
    """
    flags = [
        "--input",
        mixed_file,
        "--model",
        tiny_model(kind),
        "--epochs",
        3,
        "--lr",
        "1e-3",
        "--batch-size",
        5,
        "--micro-batch",
        2,
        "--save-steps",
        2,
        *more,
    ]
    finetune(*flags, "--output", tmp_path / "one")
    sharded = ["tests/sharded.py", *flags, *FLAGS, "--output", tmp_path / "two"]
    assert run_two(*sharded, STOP_AFTER="1", BF16=bf16).returncode == 1
    again = run_two(*sharded, BF16=bf16)
    assert (
        again.returncode == 0 and "resumed at step 2" in again.stdout and "batches: packed" in again.stdout
    ), again.stdout + again.stderr[-2000:]
    close = {"rel": 1e-4} if bf16 == "0" else {"abs": 0.01}
    assert (
        losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), **close)
        and len(losses(tmp_path / "two")) == 5
    )
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert (
        json.loads((tmp_path / "two" / "config.json").read_text())["dtype"]
        == {"0": "float32", "1": "bfloat16"}[bf16]
    )
    assert one.keys() == two.keys() and all(
        torch.allclose(one[name], two[name].float(), atol=1e-5 if bf16 == "0" else 1e-3) for name in one
    )


def weights(folder) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_held_out_problems_are_not_trained_on(tiny_model, eight_file, tmp_path, finetune, capsys):
    finetune(
        "--input",
        eight_file,
        "--output",
        tmp_path / "m",
        "--model",
        tiny_model("qwen2_vl"),
        "--epochs",
        40,
        "--lr",
        "1e-2",
        "--batch-size",
        6,
        "--hold-out",
        2,
    )
    assert json.loads((tmp_path / "m" / "recipe.json").read_text())["rows"] == 6
    log = read_rows(tmp_path / "m" / "train_log.jsonl")
    assert (
        all("validation_loss" in entry for entry in log) and 2 * log[-1]["loss"] < log[-1]["validation_loss"]
    )
    with pytest.raises(SystemExit, match="2"):
        finetune(
            "--input",
            eight_file,
            "--output",
            tmp_path / "n",
            "--model",
            tiny_model("qwen2_vl"),
            "--hold-out",
            8,
        )
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == "error: --hold-out: 8: there are 8 problems to train on; leave some"
    )


@pytest.mark.parametrize("kind", ["qwen2_vl", "idefics3"])
def test_a_frozen_vision_tower_stays(kind, tiny_model, mixed_file, tmp_path, finetune):
    flags = [
        "--input",
        mixed_file,
        "--model",
        tiny_model(kind),
        "--epochs",
        2,
        "--lr",
        "1e-2",
        "--batch-size",
        4,
        "--freeze",
        "vision",
    ]
    finetune(*flags, "--output", tmp_path / "m")
    before, after = weights(tiny_model(kind)), weights(tmp_path / "m")
    changed = {name: not torch.equal(before[name], after[name]) for name in before}
    text = {name for name in changed if not any(word in name for word in ("visual", "vision", "connector"))}
    assert (
        not any(changed[name] for name in changed.keys() - text)
        and sum(changed[name] for name in text) > len(text) / 2
        and len(changed) > len(text)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_a_frozen_tower_are_kept(kind, tiny_model, mixed_file, token_loss):
    """The second time the tower is passed by, for other groups of the same questions, too: the same
    losses and gradients, packed and padded.
    """
    spec = str(tiny_model(kind))
    processor, rows = common.load_processor(spec), TrainingRows(mixed_file)
    model = set_up_model(common.load_model(spec, "cpu", torch.float32), "vision", 0, 0.0)
    pack = packing.Packing(model, token_loss)
    groups = [list(range(len(rows))), [number for number in range(len(rows)) if rows[number]["id"] in "bcd"]]
    groups[0].sort(key=lambda number: rows.group_of[number])
    for packed in (True, False):
        pack.use(packed)
        made = [MicroBatches(rows, [numbers], processor, SETTINGS, packed)[0][0] for numbers in groups]
        results = []
        for kept in (False, True):
            if kept:
                pack.keep_features(1 << 30)
                if pack.cache is None:
                    pytest.skip("this version of transformers takes no features")
                pack.losses(model, made[0])
                model.base_model.get_image_features = None  # would be called for nothing
            model.zero_grad()
            losses = [pack.losses(model, batch) for batch in made]
            torch.cat(losses).sum().backward()
            results.append((torch.cat(losses), gradients(model)))
        assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
        assert_equal(results[1][1], results[0][1])
        pack.cache = None
        del model.base_model.get_image_features


@pytest.mark.parametrize("kind", ["qwen2_vl", "llava"])
def test_adapters_are_merged(kind, tiny_model, eight_file, tmp_path, finetune):
    """The folder is a plain model that has learnt; only matrices of the language model's layers have
    changed, by as many dimensions as asked for.
    """
    pytest.importorskip("peft")
    flags = [
        "--input",
        eight_file,
        "--model",
        tiny_model(kind),
        "--epochs",
        40,
        "--lr",
        "5e-2",
        "--batch-size",
        8,
        "--micro-batch",
        8,
        "--lora",
        4,
        "--save-steps",
        20,
    ]
    finetune(*flags, "--output", tmp_path / "m")
    before, after = weights(tiny_model(kind)), weights(tmp_path / "m")
    assert before.keys() == after.keys() and losses(tmp_path / "m")[-1] < losses(tmp_path / "m")[0] - 0.2
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and all("layers" in name and "vis" not in name for name in changed)
    assert max(int(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3)) for name in changed) == 4
    finetune(
        "--input",
        eight_file,
        "--model",
        tmp_path / "m",
        "--output",
        tmp_path / "n",
        "--lr",
        "1e-9",
        "--batch-size",
        8,
    )
    assert losses(tmp_path / "n")[0] == pytest.approx(losses(tmp_path / "m")[-1], abs=0.05), (
        "what was merged is what was trained"
    )


def test_recomputed_layers(tiny_model):
    shares = {}
    for share in (0.0, 0.5, 1.0):
        model = set_up_model(
            common.load_model(str(tiny_model("qwen2_vl")), "cpu", torch.float32), None, 0, share
        )
        layers = [
            layer
            for layer in model.modules()
            if hasattr(layer, "gradient_checkpointing") and hasattr(layer, "self_attn")
        ]
        shares[share] = sum(layer.gradient_checkpointing for layer in layers) / len(layers)
    assert shares == {0.0: 0.0, 0.5: 0.5, 1.0: 1.0}


def test_recomputing_changes_nothing(tiny_model, mixed_file, tmp_path, finetune):
    logs = []
    for share in (0, 0.5, 1):
        finetune(
            "--input",
            mixed_file,
            "--model",
            tiny_model("qwen2_vl"),
            "--output",
            tmp_path / f"{share}",
            "--lr",
            "1e-3",
            "--batch-size",
            4,
            "--recompute",
            share,
        )
        logs.append(losses(tmp_path / f"{share}"))
    assert logs[0] == pytest.approx(logs[1], rel=1e-5) and logs[0] == pytest.approx(logs[2], rel=1e-5)


def test_saved_folder_has_the_processors_files(tiny_model, eight_file, tmp_path, finetune):
    finetune(
        "--input",
        eight_file,
        "--output",
        tmp_path / "m",
        "--model",
        tiny_model("qwen2_vl"),
        "--batch-size",
        4,
    )
    for name in (
        "tokenizer.json",
        "preprocessor_config.json",
        "processor_config.json",
        "chat_template.jinja",
    ):
        assert (tmp_path / "m" / name).read_bytes() == (tiny_model("qwen2_vl") / name).read_bytes()
    recipe = json.loads((tmp_path / "m" / "recipe.json").read_text())
    assert (
        recipe["rows"] == 8
        and recipe["steps"] == 2
        and recipe["init"] == str(tiny_model("qwen2_vl"))
        and recipe["label_tokens"] > 0
    )
    assert recipe["loss"] == losses(tmp_path / "m")[-1] and recipe["rows_left_out"] == 0


def test_saved_folder_has_no_sampling_habits(tiny_model, eight_file, tmp_path, finetune):
    """Qwen2-VL's generation_config.json says top_k 1: a server would take it where a request does not
    say otherwise.
    """
    folder = tmp_path / "habits"
    shutil.copytree(tiny_model("qwen2_vl"), folder)
    ends = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(
        json.dumps(
            ends
            | {"do_sample": True, "top_k": 1, "top_p": 0.001, "temperature": 0.01, "eos_token_id": [1, 15]}
        )
    )
    finetune("--input", eight_file, "--output", tmp_path / "m", "--model", folder)
    saved = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert saved.pop("eos_token_id") == [1, 15] and saved.pop("pad_token_id") == 0
    assert not {name for name, value in saved.items() if value is not None} - {
        "transformers_version",
        "_from_model_config",
    }


def test_rows_that_cannot_be_used_are_left_out(tiny_model, images, tmp_path):
    """A image that cannot be read, or is a strip that the processor refuses, a reply that is too long, also
    of the row whose prompt is the question's, the model's own placeholders in texts: the others are learnt.
    """
    spec = str(tiny_model("qwen2_vl"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    Image.new("RGB", (600, 2)).save(tmp_path / "strip.png")
    rows = [row("a", k, images[:1], "Q?", reply) for k, reply in enumerate(["long " * 500, "one", "two"])] + [
        row("b", 0, [str(broken)], "Q?", "x"),
        row("c", 0, [], "Q?", "y " * 1200),
    ]
    rows += [
        row("d", 0, [str(tmp_path / "strip.png")], "Q?", "x"),
        row("a", 3, images[:1], "Q?", "a <|image_pad|>"),
        row("e", 0, [], "A <|video_pad|>?", "x"),
    ]
    training = TrainingRows(write_rows(tmp_path / "rows.jsonl", rows))
    processor = common.load_processor(spec)
    for packed in (True, False):
        batch, left_out = MicroBatches(
            training, deal(training, list(range(len(rows))), 9, 1)[0], processor, SETTINGS, packed
        )[0]
        assert left_out == 6 and processor.tokenizer.decode(batch.targets[batch.targets != IGNORE]).replace(
            "<eos>", " "
        ).split() in (["one", "two"], ["two", "one"])
    assert MicroBatches(
        training,
        [[number for number in range(len(rows)) if training[number]["id"] == "b"]],
        processor,
        SETTINGS,
        True,
    )[0] == (None, 1)


# ---------------------------------------------------------------- how an output was made


def test_an_output_is_skipped_refused_or_made_anew(tiny_model, eight_file, tmp_path, finetune, capsys):
    """The same recipe skips, another is refused by name; what does not change the result may differ."""
    model, previous = tmp_path / "base", tmp_path / "previous"
    for folder in (model, previous):
        shutil.copytree(tiny_model("llava"), folder)
    flags = ["--input", eight_file, "--output", tmp_path / "m", "--model", model, "--previous", previous]
    assert "8 rows, 1 steps, loss " in finetune(*flags)
    assert finetune(*flags, "--micro-batch", 2, "--save-steps", 7) == f"skip {tmp_path / 'm'}\n"
    (previous / "added.py").write_text("# another content, which --init base does not read\n")
    assert finetune(*flags) == f"skip {tmp_path / 'm'}\n"
    with pytest.raises(SystemExit, match="2"):
        finetune(*flags, "--batch-size", 4)
    assert one_error(capsys, "batch_size was 128, is 4", "--force")
    (model / "added.py").write_text("# another model\n")
    with pytest.raises(SystemExit, match="2"):
        finetune(*flags)
    assert one_error(capsys, "has another content", "--force")
    assert "8 rows, 2 steps" in finetune(*flags, "--batch-size", 4, "--force")
    left = [path.name for path in (tmp_path / "m").iterdir()]
    assert not [name for name in left if name.startswith(("checkpoint", "lock", "unused"))]


def test_an_unfinished_training_with_another_recipe_is_refused(
    tiny_model, mixed_file, tmp_path, monkeypatch, finetune, capsys
):
    flags = ["--input", mixed_file, "--model", tiny_model("llava"), "--output", tmp_path / "m"]

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "save_model", stop)
    with pytest.raises(KeyboardInterrupt):
        finetune(*flags)
    monkeypatch.undo()
    with pytest.raises(SystemExit, match="2"):
        finetune(*flags, "--lr", "1e-3")
    assert one_error(capsys, "m.part: was made with other settings: lr was 1e-05, is 0.001", "--force")


def test_a_kill_before_the_last_rename_loses_nothing(tiny_model, mixed_file, tmp_path, monkeypatch, finetune):
    """Killed when the recipe is complete and the folder not yet in its place: the same log and weights."""
    flags = ["--input", mixed_file, "--model", tiny_model("llava"), "--lr", "1e-3", "--batch-size", 2]
    flags += ["--save-steps", 3]
    finetune(*flags, "--output", tmp_path / "whole")

    def stop(*arguments):
        raise KeyboardInterrupt

    synced = os.sync
    calls = iter([synced, stop])  # of the checkpoint, of the recipe
    monkeypatch.setattr(os, "sync", lambda: next(calls)())
    with pytest.raises(KeyboardInterrupt):
        finetune(*flags, "--output", tmp_path / "killed")
    monkeypatch.undo()
    part = tmp_path / "killed.part"
    assert json.loads((part / "recipe.json").read_text())["steps"] == 4 and not (tmp_path / "killed").exists()
    assert "resumed at step 3" in finetune(*flags, "--output", tmp_path / "killed")
    whole, killed = (
        json.loads((tmp_path / name / "recipe.json").read_text()) for name in ("whole", "killed")
    )
    names = ("rows", "steps", "loss", "label_tokens", "rows_left_out", "init", "flags", "inputs")
    assert [whole[name] for name in names] == [killed[name] for name in names]
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_second_call_at_the_same_time_is_refused(tiny_model, eight_file, tmp_path, finetune, capsys):
    flags = ["--input", eight_file, "--output", tmp_path / "m", "--model", tiny_model("llava")]
    (tmp_path / "m.part").mkdir()
    with (tmp_path / "m.part" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="2"):
            finetune(*flags)
    assert one_error(capsys, "m.part: is being written by another process")


def test_a_dry_run_checks_and_writes_nothing(tmp_path, finetune, capsys):
    flags = ["--input", tmp_path / "none.jsonl", "--output", tmp_path / "m"]
    assert finetune(*flags, "--model", ROOT / "toy/base", "--dry-run", 10) == "" and not list(
        tmp_path.iterdir()
    )
    with pytest.raises(SystemExit, match="2"):
        finetune(*flags, "--model", "http://127.0.0.1:9/v1#m", "--dry-run", 10)
    assert one_error(capsys, "an endpoint cannot be fine-tuned")


def test_two_processes_refuse_alike(tiny_model, mixed_file, tmp_path, run_two):
    """None is left waiting for one that cannot go on."""
    flags = ["--input", mixed_file, "--output", tmp_path / "m", "--model", tiny_model("llava_sliding")]
    for script in ("04_finetune.py", "tests/sharded.py"):
        done = run_two(script, *flags, *FLAGS, "--force")
        assert done.returncode != 0 and "error: --batches packed: rows of this model" in done.stderr, (
            done.stderr
        )


# ---------------------------------------------------------------- the rows, without a model


def write_file(module, args: argparse.Namespace, path) -> None:
    """The training file as main() lets it be written."""
    choose, make = (
        functools.partial(function, args=args) for function in (module.choose_rows, module.training_row)
    )
    write_training_file(path, args.input, args.limit, choose, make)


def test_a_student_learns_the_rows_own_prompt_and_a_judge_the_judges(stage, images, tmp_path):
    """Nothing is rendered anew: what stands in the row is asked, whatever it is."""
    wrong = {
        "id": "a",
        "sample": 0,
        "question": "Q?",
        "images": images[:2],
        "response": "So it is 5 <|im_end|>.",
        "finish": "stop",
        "status": "wrong",
        "prompt": "Solve {this}: Q?",
        "judge_prompt": "Judge {that}.",
        "error_step": 2,
        "error_analysis": "It is 4, \u00e9.",
    }
    correct = wrong | {
        "sample": 1,
        "response": "It is 4.",
        "status": "correct",
        "error_step": None,
        "error_analysis": None,
    }
    path = write_rows(tmp_path / "v.jsonl", [wrong, correct])

    def written(**flags) -> list[list[str]]:
        args = argparse.Namespace(input=[str(path)], per_problem=4, wrong_ratio=1.0, limit=0, seed=0, **flags)
        write_file(stage("04_finetune"), args, tmp_path / "t.jsonl")
        return [
            [message["content"] for message in row["messages"]] for row in read_rows(tmp_path / "t.jsonl")
        ]

    assert written(orm=False, binary=False) == [["<image><image>Solve {this}: Q?", "It is 4."]]
    asked = "<image><image>Judge {that}."
    explained = '{"status": "WRONG", "error_step": 2, "error_analysis": "It is 4, \u00e9."}'
    assert written(orm=True, binary=False) == [
        [asked, explained],
        [asked, '{"status": "CORRECT", "error_step": null, "error_analysis": null}'],
    ]
    assert written(orm=True, binary=True) == [
        [asked, '{"status": "WRONG"}'],
        [asked, '{"status": "CORRECT"}'],
    ]


@pytest.mark.parametrize("flag, field", [([], "prompt"), (["--orm"], "judge_prompt")])
def test_a_row_without_its_prompt_is_refused_by_name(flag, field, tmp_path, finetune, capsys):
    row = {
        "id": "a",
        "sample": 0,
        "question": "Q?",
        "images": [],
        "response": "It is 4.",
        "status": "correct",
    }
    path = write_rows(tmp_path / "v.jsonl", [row])
    with pytest.raises(SystemExit, match="2"):
        finetune("--input", path, "--output", tmp_path / "m", "--model", ROOT / "toy/base", *flag)
    assert f"{path}:1: {field}: missing" in capsys.readouterr().err and not list(tmp_path.glob("m*"))


def test_workers_hand_over_no_tensors(tiny_model, mixed_file):
    """Tensors would travel through /dev/shm, of which containers have 64 MB; what arrives is the same."""
    processor, rows = common.load_processor(str(tiny_model("qwen2_vl"))), TrainingRows(mixed_file)
    dataset = MicroBatches(rows, [[0, 1, 2], [3], [4, 5, 6, 7]], processor, SETTINGS, True)
    assert not any(b"torch" in pickle.dumps(as_arrays(dataset[index])) for index in range(3))
    for batches in zip(prefetch_batches(dataset, 0, 0), prefetch_batches(dataset, 2, 0), strict=True):
        (one, left_out), (other, other_left_out) = batches
        assert (
            one.inputs.keys() == other.inputs.keys()
            and torch.equal(one.targets, other.targets)
            and left_out == other_left_out == 0
        )
        assert all(
            torch.equal(torch.as_tensor(value), torch.as_tensor(other.inputs[name]))
            for name, value in one.inputs.items()
        )
        assert (one.layout, one.shared, one.answers, one.tokens) == (
            other.layout,
            other.shared,
            other.answers,
            other.tokens,
        )


def test_what_is_chosen_does_not_hang_on_the_order_of_the_rows(stage, tmp_path):
    """Replies arrive in another order each time, and after a kill in yet another one."""
    rows = [
        {
            "id": f"p{k // 4}",
            "sample": k % 4,
            "question": "Q",
            "images": [],
            "answer": "1",
            "response": f"r{k % 3} {k}" if k % 5 else "same",
            "finish": "stop",
            "status": ("correct", "wrong")[k % 2],
            "answer_check": ("correct", "wrong")[k % 2],
            "error_step": None,
            "error_analysis": "a" if k % 3 else None,
            "prompt": "Q",
            "judge_prompt": "J",
        }
        for k in range(48)
    ]
    chosen = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        path = write_rows(tmp_path / "v.jsonl", rows)
        chosen.append(
            [
                stage("04_finetune").choose_rows(
                    argparse.Namespace(input=[path], orm=orm, per_problem=1, wrong_ratio=1.0, seed=0)
                )
                for orm in (True, False)
            ]
        )
    assert chosen[0] == chosen[1] == chosen[2] and all(chosen[0])


def test_training_rows_name_where_they_come_from(stage, tmp_path):
    """A teacher's, a round's and a reflection's row -> model, seed and the file that holds the verdict;
    the reflection also its draft's.
    """
    (tmp_path / "elsewhere").mkdir()

    def verified(name: str, **changes) -> dict:
        return {
            "id": name,
            "question": "What?",
            "images": [],
            "sample": 1,
            "prompt": f"Solve {name}.",
            "response": f"by {name}",
            "finish": "stop",
            "status": "correct",
        } | changes

    files = {
        "round_0": [verified("a", origin="teacher", model="http://host/v1#teacher", seed=11)],
        "round_2": [
            verified("b", origin="round-2", model="runs/x/round_1/model", seed=12),
            verified("c", origin="round-2", status="wrong", response="draft"),
        ],
        "final": [
            verified(
                "c",
                sample=0,
                origin="reflection",
                model="http://host/v1#teacher",
                seed=13,
                draft="draft",
                draft_of={"verified_in": "../round_2/verified.jsonl", "origin": "round-2", "sample": 1},
            )
        ],
    }
    for folder, rows in files.items():
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder / "verified.jsonl", rows)
    inputs = [str(tmp_path / folder / "verified.jsonl") for folder in files]
    args = argparse.Namespace(
        input=inputs, orm=False, binary=False, per_problem=4, wrong_ratio=1.0, limit=0, seed=0
    )
    write_file(stage("04_finetune"), args, tmp_path / "elsewhere" / "train.jsonl")
    for row, (folder, rows) in zip(
        read_rows(tmp_path / "elsewhere" / "train.jsonl"), files.items(), strict=True
    ):
        (found,) = [
            other
            for other in read_rows(tmp_path / "elsewhere" / row["verified_in"])
            if (other["id"], other["sample"]) == (row["id"], row["sample"])
        ]
        assert (
            found == rows[0]
            and row["verified_in"] == f"../{folder}/verified.jsonl"
            and (row["model"], row["seed"]) == (found["model"], found["seed"])
        )
        assert [message["content"] for message in row["messages"]] == [found["prompt"], found["response"]]
    draft = row["draft_of"]
    wrong = [
        other
        for other in read_rows(tmp_path / "elsewhere" / draft["verified_in"])
        if (other["id"], other["sample"]) == (row["id"], draft["sample"])
    ]
    assert [other["response"] for other in wrong] == ["draft"]


def test_balance_of_an_orms_training_data(stage):
    """As many correct as wrong ones; no subject tells the verdict: at most four of one kind for each of
    the other.
    """
    keys = {
        ("correct", "easy"): [f"ec{k}" for k in range(50)],
        ("wrong", "easy"): [f"ew{k}" for k in range(20)],
        ("correct", "hard"): ["hc0", "hc1"],
        ("wrong", "hard"): [f"hw{k}" for k in range(90)],
        ("wrong", "unsolved"): [f"uw{k}" for k in range(9)],
    }
    balanced = stage("04_finetune").balanced
    chosen = balanced(keys, 0)
    kinds = Counter(key[:2] for key in chosen)
    assert (
        len(set(chosen)) == len(chosen)
        and kinds["ec"] + kinds["hc"] == kinds["ew"] + kinds["hw"] + kinds["uw"] == 32
    )
    assert kinds["ew"] <= 20 and kinds["hw"] <= 8 and kinds["uw"] <= 4
    assert balanced(keys, 0) == chosen != balanced(keys, 1)
    assert balanced({("correct", "a"): ["x"]}, 0) == []
    few = {
        status: [f"{status} {k}" for k in range(count)] for status, count in (("correct", 9), ("wrong", 12))
    }
    few = {(status, "a"): group for status, group in few.items()}
    for ratio, expected in ((1.0, (9, 9)), (2.0, (6, 12)), (0.5, (9, 5))):  # wrong ones for each correct one
        kinds = Counter(key.split()[0] for key in balanced(few, 0, ratio))
        assert (kinds["correct"], kinds["wrong"]) == expected, ratio


def test_pick_diverse(stage):
    rows = [("a", "x is 1 + 2"), ("b", "x  is 1 + 2"), ("c", "x is 1 + 3"), ("d", "quite another way")]
    assert stage("04_finetune").pick_diverse(rows, 2) == ["a", "d"]
    assert stage("04_finetune").pick_diverse(rows, 9) == ["a", "d", "c"]


def test_learning_rate(stage):
    rate = stage("04_finetune").learning_rate
    values = [rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert (
        values[9] == 1.0
        and values[0] == 0.1
        and values == sorted(values[:10]) + sorted(values[10:], reverse=True)
        and values[-1] < 0.01
    )


@pytest.mark.parametrize("world", [1, 2, 3])
def test_plan_covers_every_row_once_an_epoch(tmp_path, world):
    write_rows(
        tmp_path / "t.jsonl",
        [{"id": str(index), "sample": 0, "text": "x" * (index % 7)} for index in range(37)],
    )
    rows = TrainingRows(tmp_path / "t.jsonl")

    class args:
        epochs, seed, batch_size, micro_batch = 2.0, 0, 8, 3

    steps = plan_steps(rows, args, world)
    assert all(len(step) == world and len({len(micro) for micro in step}) == 1 for step in steps)
    numbers = [number for step in steps for rank in step for micro in rank for number in micro]
    assert sorted(numbers) == sorted(list(range(37)) * 2)
    args.epochs = 0.001
    assert len(plan_steps(rows, args, world)) == 1


def test_plan_keeps_groups_whole(tmp_path):
    """A problem's rows are in one micro-batch where they fit, and one with other images or earlier text
    is another group.
    """
    rows = [
        {
            "id": str(index),
            "sample": k,
            "images": [f"{index}.png"],
            "messages": [{"role": "user", "content": "<image>Q"}, {"role": "assistant", "content": "x" * k}],
        }
        for index in range(9)
        for k in range(3)
    ]
    rows += [
        {"id": "0", "sample": 9, "images": ["1.png"], "messages": rows[0]["messages"]},
        {
            "id": "0",
            "sample": 10,
            "images": ["0.png"],
            "messages": [{"role": "user", "content": "Look: <image>Q"}, rows[0]["messages"][1]],
        },
    ]
    write_rows(tmp_path / "t.jsonl", rows)
    training = TrainingRows(tmp_path / "t.jsonl")
    assert len({*training.group_of}) == 11
    args = argparse.Namespace(epochs=1.0, seed=0, batch_size=100, micro_batch=4)
    ((micro,),) = plan_steps(training, args, 1)
    assert (
        sorted(number for numbers in micro for number in numbers) == list(range(29))
        and max(map(len, micro)) <= 4
    )
    assert all(
        len(
            {
                index
                for index, numbers in enumerate(micro)
                for number in numbers
                if training.group_of[number] == group
            }
        )
        == 1
        for group in range(11)
    )
    # rows of like length together, whichever group is theirs
    ((padded,),) = plan_steps(training, args, 1, packed=False)
    sizes = [training.sizes[number] for numbers in padded for number in numbers]
    assert sizes == sorted(sizes) and [len(numbers) for numbers in padded] == [4] * 7 + [1]


@pytest.mark.parametrize("world, most", [(1, 5), (2, 16), (2, 7), (3, 4), (4, 1)])
@pytest.mark.parametrize("packed", [True, False])
def test_processes_get_equal_shares(tmp_path, world, most, packed):
    """Every row once, in as many micro-batches a process; of those computed at the same time none is much
    longer than another, if a process could take its part of the step at once.
    """
    reply = {"role": "assistant", "content": "x"}
    rows = [
        {"id": name, "sample": k, "messages": [{"role": "user", "content": name * words}, reply]}
        for name, words, count in (("a", 30, 4), ("b", 900, 1), ("c", 250, 3), ("d", 80, 4), ("e", 500, 4))
        for k in range(count)
    ]
    write_rows(tmp_path / "t.jsonl", rows)
    training = TrainingRows(tmp_path / "t.jsonl")
    args = argparse.Namespace(epochs=1.0, seed=0, batch_size=16, micro_batch=most)
    (shares,) = plan_steps(training, args, world, packed)
    micro = [numbers for share in shares for numbers in share]
    assert sorted(number for numbers in micro for number in numbers) == list(range(16))
    assert len(shares) == world and len({*map(len, shares)}) == 1 and max(map(len, micro)) <= most
    assert all(numbers for share in shares for numbers in share[:1])  # empty ones stand last
    if packed and most == 16:
        lengths = [sum(training.sizes[number] for number in share[0]) for share in shares]
        assert [*map(len, shares)] == [1, 1] and max(lengths) < 1.1 * min(lengths), lengths


def test_small_losses_may_differ_by_rounding():
    """A model that has learnt its rows has losses near 0: a small share of them is less than rounding."""
    losses = torch.full((400,), 0.004)
    assert how_far_off(losses + 1e-6, losses) < ROUNDING["no"] / 5
    assert how_far_off(losses + 1e-3, losses) > ROUNDING["no"] * 50  # another row's keys
    assert how_far_off(torch.full((9,), 3.0003), torch.full((9,), 3.0)) == pytest.approx(1e-4, rel=1e-2)
