"""Fine-tuning tiny random models: what is learnt, and that it is learnt exactly.

Three architectures; ARCHITECTURES=all (bench_training.py --architectures) takes all seven.
"""

import argparse
import contextlib
import inspect
import json
import math
import os
import pickle
import random
import shutil
import sys
import tracemalloc
from collections import Counter
from functools import partial
from subprocess import DEVNULL
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from conftest import begin, kill, lines_of, read_rows, write_rows
from PIL import Image
from safetensors.torch import load_file
from transformers import Qwen2VLForConditionalGeneration

import common
from mathse.chat import chat_parts, encode_prompts, user_message
from mathse.generate import Request
from mathse.train import fit, pack
from mathse.train.pack import ROUNDING, Packing, encode, how_far_off, prefetch, why_not
from mathse.train.plan import TrainingRows, deal, plan_steps, write_training_file

SEVEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "llava", "llava_onevision"]
KINDS = SEVEN if os.environ.get("ARCHITECTURES") == "all" else ["qwen2_vl", "internvl", "idefics3"]
FLAGS = ["--max-pixels", "10000", "--workers", "0", "--processes", "1"]
SETTINGS = argparse.Namespace(max_pixels=10_000, max_length=2000)


def row(name: str, sample: int, images: list[str], prompt: str, reply: str, **more) -> dict:
    messages = [*user_message(prompt, images), {"role": "assistant", "content": reply}]
    return {"messages": messages, "images": images, "id": name, "sample": sample, "origin": "teacher"} | more


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    for index in range(3):
        size = 30 + 9 * index, 40 + 20 * index, 3
        noise = np.random.default_rng(index).integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    return [str(folder / f"{index}.png") for index in range(3)]


@pytest.fixture(scope="module")
def mixed_rows(images) -> list[dict]:
    """Three answers of a problem, one to two images, text only, and what a judge is shown."""
    replies = ["one", "a longer reply it is", "third"]
    rows = [row("a", k, images[:1], "What is it?", reply) for k, reply in enumerate(replies)]
    rows += [row("b", 0, images[1:], "Is <image> like <image>?", "yes")]
    rows += [row("c", k, [], "Text only?", reply) for k, reply in enumerate(["no", "well, hm"])]
    asked = [f"Is {'very ' * k}right right?\nCheck." for k in range(2)]
    return rows + [row("d", k, images[2:], prompt, f"verdict {k}") for k, prompt in enumerate(asked)]


@pytest.fixture
def mixed_file(mixed_rows, tmp_path):
    return write_rows(tmp_path / "mixed.jsonl", mixed_rows)


@pytest.fixture
def words(tiny_model, mixed_file, tmp_path):
    """A command's flags; the mixed rows and a tiny LLaVA unless other files are named."""

    def call(text: str = "", kind: str = "llava", output: str = "m", **files) -> list[str]:
        files = {"input": mixed_file, "model": tiny_model(kind)} | files | {"output": tmp_path / output}
        named = (word for name, value in files.items() for word in (f"--{name}", str(value)))
        return [*FLAGS, *text.split(), *named]

    return call


@pytest.fixture
def finetune(words, stage, monkeypatch, capfd):
    """Call 04_finetune.py in this process, which saves the time to load torch; what it printed. A mistake
    raises SystemExit.
    """

    def call(text: str = "", **files) -> str:
        AcceleratorState._reset_state(True)  # a stage begins without
        # in a fork of a process that has used threads, torch must not start any
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))
        monkeypatch.setattr(sys, "argv", ["04_finetune.py", *words(text, **files)])
        stage("04_finetune").main()
        return capfd.readouterr().out

    return call


@pytest.fixture
def refused(finetune, capfd):
    """The same, for a call that ends in one line on stderr, exit code 2; the line."""

    def call(text: str = "", **files) -> str:
        with pytest.raises(SystemExit, match="2"):
            finetune(text, **files)
        (line,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("error: "))
        return line

    return call


@pytest.fixture
def loaded(tiny_model, stage):
    """(processor, model that packs) of an architecture."""

    def call(kind: str, dtype=torch.float32) -> tuple:
        spec = str(tiny_model(kind))
        packing = Packing(common.load_model(spec, "cpu", dtype), stage("04_finetune").token_loss)
        packing.use(True)
        return common.load_processor(spec), packing

    return call


def log(folder, name: str = "loss") -> list:
    return [entry[name] for entry in read_rows(folder / "train_log.jsonl")]


def recipe(folder) -> dict:
    return json.loads((folder / "recipe.json").read_text())


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_alike(one, other, most: float) -> None:
    """The weights of two folders, no further apart."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    rounding = {"rtol": min(most, 1e-5), "atol": most}
    assert all(torch.allclose(ours[name], theirs[name].float(), **rounding) for name in ours)


def gradients(model) -> dict[str, torch.Tensor]:
    named = model.named_parameters()
    return {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Every gradient within 1e-5 of its size, or of the largest one's if it is nothing but rounding."""
    floor = 1e-4 * max(gradient.norm() for gradient in theirs.values())
    assert {name for name, gradient in ours.items() if gradient.norm() > floor} <= theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * max(gradient.norm(), 10 * floor), name


# ---------------------------------------------------------------- the loss


def loss_of(model, processor, row: dict) -> torch.Tensor:
    """The sum of a row's losses as transformers computes them: full logits of one sequence, prompt, reply and
    EOS.
    """
    images = [Image.open(path).convert("RGB") for path in row["images"]]
    inputs = encode_prompts(processor, [chat_parts(row["messages"][:-1], images)])
    reply = processor.tokenizer(row["messages"][-1]["content"] + "<eos>", return_tensors="pt")["input_ids"]
    added = {"input_ids": reply, "attention_mask": torch.ones_like(reply)}
    for name in {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"} & inputs.keys():
        inputs[name] = torch.cat([inputs[name], added.get(name, torch.zeros_like(reply))], 1)
    logits = model(**inputs, use_cache=False).logits[0, -reply.shape[1] - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, reply[0], reduction="sum")


@pytest.mark.parametrize("kind", [*KINDS, "gemma3"])
def test_loss_and_gradients_are_those_of_one_row_at_a_time(kind, loaded, mixed_file, monkeypatch):
    """Packed with shared prompts, all logits at a time or five rows of them, and alone, with the model's own
    attention, which may forget what is far.
    """
    rows, (processor, packing) = TrainingRows(mixed_file), loaded(kind)
    model, numbers = packing.model, deal(rows, [*range(8)], 100, 1)[0][0]
    packing.use(False)
    total = sum(loss_of(model, processor, rows[number]) for number in numbers)
    total.backward()
    expected = gradients(model)
    replies = [rows[number]["messages"][-1]["content"] + "<eos>" for number in numbers]
    singles = [encode([number], rows, processor, SETTINGS, packed=False)[0] for number in numbers]
    whole, left_out = encode(numbers, rows, processor, SETTINGS)
    assert left_out == 0 and processor.tokenizer.decode(whole.targets) == "".join(replies)
    forgets, sizes, project = kind == "gemma3", [], packing.project
    packing.project = lambda hidden: sizes.append(len(hidden)) or project(hidden)
    few = 5 * packing.vocabulary
    ways = [(singles, pack.CHUNK)] + ([] if forgets else [([whole], pack.CHUNK), ([whole], few)])
    for batches, chunk in ways:
        monkeypatch.setattr(pack, "CHUNK", chunk)
        model.zero_grad()
        packing.use(batches is not singles)
        sizes.clear()
        loss = sum(packing.losses(model, batch).sum() for batch in batches)
        assert loss.item() == pytest.approx(total.item(), rel=1e-5)
        loss.backward()
        assert_equal(gradients(model), expected)
        assert chunk != few or max(sizes) == 5
    # no padding, and each question once
    assert whole.inputs["input_ids"].shape == (1, whole.tokens)
    shared = [start for start, answers in zip(whole.starts, whole.answers) if len(answers) > 1]
    assert len(shared) == 3 and whole.tokens == sum(b.tokens for b in singles) - sum(shared) - max(
        start for start, answers in zip(whole.starts, whole.answers) if len(answers) == 3
    )
    reason = why_not(packing, model, whole, singles, 1e-5)
    assert reason == ("its attention is not full attention" if forgets else "")


def test_small_losses_may_differ_by_rounding():
    """A model that has learnt its rows has losses near 0: a small share of them is less than rounding."""
    losses = torch.full((400,), 0.004)
    assert how_far_off(losses + 1e-6, losses) < ROUNDING["no"] / 5
    assert how_far_off(losses + 1e-3, losses) > ROUNDING["no"] * 50  # another row's keys
    assert how_far_off(torch.full((9,), 3.0003), torch.full((9,), 3.0)) == pytest.approx(1e-4, rel=1e-2)


COMPUTING_ON = {  # what a model does with its logits, by why its rows cannot be packed
    "the loss is off by": lambda logits: logits / 1e6,
    "IndexError: too many indices": lambda logits: logits[:, :, :] / 1e6,
}


@pytest.mark.parametrize("reason", COMPUTING_ON)
def test_a_model_that_computes_on_with_its_logits_is_learnt_by_its_own_loss(
    reason, finetune, tmp_path, monkeypatch
):
    """As Gemma 4 and Granite do: what the output layer returns must be logits then."""
    forward = Qwen2VLForConditionalGeneration.forward

    def computing_on(self, *arguments, **settings):
        output = forward(self, *arguments, **settings)
        output.logits = COMPUTING_ON[reason](output.logits)
        return output

    computing_on.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(Qwen2VLForConditionalGeneration, "forward", computing_on)
    printed = finetune(kind="qwen2_vl")
    assert "rows: one a forward pass, about " in printed and f"cannot be packed: {reason}" in printed
    expected = [math.log(len(tiny.SPECIAL) + 256)]  # all tokens are as likely
    assert log(tmp_path / "m") == pytest.approx(expected, rel=1e-4)


def test_dropout_of_attention_trains_one_row_a_pass(tiny_model, tmp_path, finetune):
    """Which the check at the start goes without. (Sliding windows: test_a_sharded_model_trains_alike.)"""
    dropout = shutil.copytree(tiny_model("llava"), tmp_path / "dropout")
    text = json.loads((dropout / "config.json").read_text())["text_config"]
    tiny.edit(dropout / "config.json", text_config=text | {"attention_dropout": 0.5})
    printed = finetune(model=dropout)
    assert "times slower than packed; they cannot be packed: attention_dropout 0.5\n" in printed


@pytest.mark.parametrize("way", ["autocast", "weights"])
def test_packed_in_bf16(way, loaded, mixed_file):
    """As on a GPU: computed in bf16 from fp32 weights, or all in bf16; within its precision of fp32, and with
    gradients.
    """
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        processor, packing = loaded("qwen2_vl", dtype if way == "weights" else torch.float32)
        batch, _ = encode(range(8), TrainingRows(mixed_file), processor, SETTINGS)
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast" and dtype == torch.bfloat16):
            results.append(packing.losses(packing.model, batch))
        results[-1].sum().backward()
        assert all(gradient.isfinite().all() for gradient in gradients(packing.model).values())
    assert results[1].dtype == torch.float32 and 0 < (results[0] - results[1]).abs().max() < 0.05


@pytest.mark.parametrize("kind, processes", [("qwen2_vl", 1), ("llava_sliding", 2)])
def test_a_weight_of_two_is_the_row_twice(kind, processes, mixed_rows, tmp_path, finetune):
    """Packed and one row a pass; the loss is a mean over all processes, so the weights of all count."""
    doubled = [row for row in mixed_rows if row["id"] in "ac"]
    rows = {"weighted": [row | {"weight": 2} if row in doubled else row for row in mixed_rows]}
    rows["twice"] = mixed_rows + [row | {"sample": 9 + row["sample"]} for row in doubled]
    for name, given in rows.items():
        file = write_rows(tmp_path / f"{name}.jsonl", given)
        finetune(f"--batch-size 16 --processes {processes}", kind=kind, input=file, output=name)
    for name in ("loss", "grad_norm"):
        assert log(tmp_path / "weighted", name) == pytest.approx(log(tmp_path / "twice", name), rel=1e-5)
    assert log(tmp_path / "weighted", "tokens") < log(tmp_path / "twice", "tokens")


@pytest.mark.parametrize("weight", [-1, "2", None])
def test_a_weight_that_is_none_is_refused(weight, mixed_rows, tmp_path, refused):
    path = write_rows(tmp_path / "rows.jsonl", [mixed_rows[0] | {"weight": weight}])
    assert refused(input=path) == f"error: {path}: weight: {weight!r} of 'a' is not a number of at least 0"


# ---------------------------------------------------------------- trainings


@pytest.mark.parametrize("kind", KINDS)
def test_overfits_then_answers(kind, images, finetune, tmp_path):
    shown = [images[k % 3 : k % 3 + k % 2] for k in range(8)]
    rows = [row(str(k), 0, shown[k], f"Number {k}?", f"It is {k}{'!' * k}") for k in range(8)]
    flags = "--epochs 140 --lr 1e-2 --batch-size 8 --micro-batch 8 --warmup 0.05"
    finetune(flags, kind=kind, input=write_rows(tmp_path / "rows.jsonl", rows))
    generate = tiny.open_engine(tmp_path / "m", max_tokens=16)
    replies = generate(Request(row, row["messages"][:1], {0: 0}) for row in rows)
    expected = {row["id"]: row["messages"][1]["content"] for row in rows}
    assert {reply.row["id"]: reply.text for reply in replies} == expected


@contextlib.contextmanager
def stopped(function: str):
    """Ended at a call of this function."""
    with mock.patch(function, side_effect=lambda *_: sys.exit(1)), pytest.raises(SystemExit, match="1"):
        yield


def test_a_checkpoint_of_several_gpus_is_not_gone_on_with_by_one(tmp_path, finetune, refused):
    with stopped("mathse.train.fit.save_model"):
        finetune()
    (tmp_path / "m.part" / "checkpoint-2" / "pytorch_model_fsdp_0").mkdir(parents=True)
    assert "checkpoint-2: was saved by several GPUs; go on with several, or remove" in refused()


@pytest.mark.parametrize("kind, first, then", [("llava", 2, 1), ("gemma3", 1, 2)])
def test_two_processes_train_alike(kind, first, then, words, tmp_path, finetune, run_two):
    """Two CPU processes, started by a launcher or forked, take the same steps as one, also where three
    micro-batches are dealt to two, some have no image, and another number of processes has begun.
    """
    flags = "--epochs 3 --lr 1e-3 --batch-size 5 --micro-batch 2 --save-steps 2"
    finetune(flags, kind=kind, output="one")
    two = run_two("04_finetune.py", *words(flags, kind=kind, output="two"))
    assert two.returncode == 0, two.stderr[-2000:]
    with stopped("mathse.train.fit.Session.save"):
        finetune(f"{flags} --processes {first}", kind=kind, output="moved")
    printed = finetune(f"{flags} --processes {then}", kind=kind, output="moved")
    assert "resumed at step 4" in printed
    for name, processes in (("two", 2), ("moved", then)):
        assert log(tmp_path / "one") == pytest.approx(log(tmp_path / name), rel=1e-4)
        assert recipe(tmp_path / name)["processes"] == processes
        assert_alike(tmp_path / "one", tmp_path / name, most=1e-4)


def test_two_processes_refuse_alike(words, run_two):
    """None is left waiting for one that cannot go on."""
    for script in ("04_finetune.py", "tests/sharded.py"):
        done = run_two(script, *words("--max-length 5 --force"))
        assert done.returncode != 0 and "error: no row of the first step can be used" in done.stderr


@pytest.mark.parametrize(
    "kind, bf16, more, way",
    [
        ("llava", "0", "", "packed"),
        ("gemma3", "0", "", "one a forward pass"),
        ("qwen2_vl", "1", "--lora 4 --freeze vision --recompute 0.5", "packed"),
    ],
)
def test_a_sharded_model_trains_alike(kind, bf16, more, way, words, tmp_path, finetune, run_two):
    """Two processes that each hold half of the model (FSDP2), killed after a sharded checkpoint and called
    again: the steps and the weights of one process.
    """
    flags = f"--epochs 3 --lr 1e-3 --batch-size 5 --micro-batch 2 --save-steps 2 {more}"
    finetune(flags, kind=kind, output="one")
    sharded = ["tests/sharded.py", *words(flags, kind=kind, output="two")]
    assert run_two(*sharded, STOP="1", BF16=bf16).returncode == 3
    again = run_two(*sharded, BF16=bf16)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "resumed at step 2" in again.stdout and f"rows: {way}" in again.stdout
    close = {"rel": 1e-4} if bf16 == "0" else {"abs": 0.01}
    assert log(tmp_path / "one") == pytest.approx(log(tmp_path / "two"), **close)
    assert len(log(tmp_path / "two")) == 5
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["dtype"] == {"0": "float32", "1": "bfloat16"}[bf16]
    assert_alike(tmp_path / "one", tmp_path / "two", most={"0": 1e-5, "1": 1e-3}[bf16])


@pytest.mark.parametrize("kind", ["qwen2_vl", "idefics3"])
def test_a_frozen_vision_tower_stays(kind, tiny_model, tmp_path, finetune):
    finetune("--epochs 2 --lr 1e-2 --batch-size 4 --freeze vision", kind=kind)
    before, after = weights(tiny_model(kind)), weights(tmp_path / "m")
    changed = {name: not torch.equal(before[name], after[name]) for name in before}
    text = {name for name in changed if not any(word in name for word in ("visual", "vision", "connector"))}
    assert not any(changed[name] for name in changed.keys() - text) and len(changed) > len(text)
    assert sum(changed[name] for name in text) > len(text) / 2


def test_adapters_are_merged(tiny_model, tmp_path, finetune):
    """The folder is a plain model that has learnt; only matrices of the language model's layers have changed,
    by as many dimensions as asked for.
    """
    pytest.importorskip("peft")
    finetune("--epochs 40 --lr 5e-2 --batch-size 8 --micro-batch 8 --lora 4 --save-steps 20")
    before, after, losses = weights(tiny_model("llava")), weights(tmp_path / "m"), log(tmp_path / "m")
    assert before.keys() == after.keys() and losses[-1] < losses[0] - 0.2
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and all("layers" in name and "vis" not in name for name in changed)
    assert max(int(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3)) for name in changed) == 4
    # what was merged is what was trained
    finetune("--lr 1e-9 --batch-size 8", model=tmp_path / "m", output="n")
    assert log(tmp_path / "n")[0] == pytest.approx(losses[-1], abs=0.05)


def test_recomputed_layers(tiny_model, tmp_path, finetune):
    """The share that is asked for, and it changes nothing."""
    losses = []
    for share in (0.0, 0.5, 1.0):
        model = common.load_model(str(tiny_model("qwen2_vl")), "cpu", torch.float32)
        modules = fit.set_up_model(model, None, 0, share).modules()
        layers = [module.gradient_checkpointing for module in modules if hasattr(module, "self_attn")]
        assert sum(layers) == share * len(layers)
        finetune(f"--lr 1e-3 --batch-size 4 --recompute {share}", kind="qwen2_vl", output=f"{share}")
        losses.append(log(tmp_path / f"{share}"))
    assert all(losses[0] == pytest.approx(other, rel=1e-5) for other in losses)


def test_rows_that_cannot_be_used_are_left_out(loaded, images, tmp_path):
    """An image that cannot be read, or is a strip that the processor refuses, a reply that is too long, also
    of the row whose prompt is the question's: the others are learnt.
    """
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    Image.new("RGB", (600, 2)).save(tmp_path / "strip.png")
    replies = ["long " * 500, "one", "two", "a <|image_pad|>"]
    rows = [row("a", k, images[:1], "Q?", reply) for k, reply in enumerate(replies)]
    rows += [row("b", 0, [str(tmp_path / "broken.png")], "Q?", "x"), row("c", 0, [], "Q?", "y " * 1200)]
    rows += [row("d", 0, [str(tmp_path / "strip.png")], "Q?", "x"), row("e", 0, [], "A <|video_pad|>?", "x")]
    rows = TrainingRows(write_rows(tmp_path / "rows.jsonl", rows))
    processor, _ = loaded("qwen2_vl")
    batch, left_out = encode(deal(rows, list(range(8)), 9, 1)[0][0], rows, processor, SETTINGS)
    learnt = processor.tokenizer.decode(batch.targets).replace("<eos>", " ").split()
    assert left_out == 4 and sorted(learnt) == ["<", "a", "one", "two", "x", "|image_pad|>"]
    broken = next(number for number in range(8) if rows[number]["id"] == "b")
    for packed in (True, False):
        assert encode([broken], rows, processor, SETTINGS, packed) == (None, 1)


@pytest.mark.parametrize("usable, code, said", [(0, 2, "no row of the first"), (14, 1, "20 rows one after")])
def test_a_processor_that_refuses_every_row_ends_the_training(
    usable, code, said, tmp_path, finetune, monkeypatch, capfd
):
    """At once, or from a row on; a few bad ones are left out."""
    rows = [row(str(k), 0, [], f"Number {k}?", "x") for k in range(60)]
    real, calls = pack.encode_groups, []

    def refuses(processor, groups):
        calls.append(groups)
        if len(calls) > usable or len(calls) in (5, 9):
            raise TypeError("no")
        return real(processor, groups)

    monkeypatch.setattr(pack, "encode_groups", refuses)
    with pytest.raises(SystemExit, match=str(code)):
        finetune("--batch-size 1", input=write_rows(tmp_path / "rows.jsonl", rows))
    assert said in capfd.readouterr().err
    assert not usable or sum(log(tmp_path / "m.part", "left_out")) in range(20, 23)


def test_workers_hand_over_no_tensors(loaded, mixed_file):
    """Tensors would travel through /dev/shm, of which containers have 64 MB; what arrives is the same."""
    settings = {"rows": TrainingRows(mixed_file), "processor": loaded("qwen2_vl")[0], "args": SETTINGS}
    numbers = [[0, 1, 2], [3], [4, 5, 6, 7]]
    here, there = ([*prefetch(numbers, workers, 0, **settings)] for workers in (0, 2))
    assert len(here) == 3 and b"torch" not in pickle.dumps(here)
    with np.printoptions(threshold=sys.maxsize):
        assert repr(here) == repr(there)


# ---------------------------------------------------------------- what is saved


def test_saved_folder(tiny_model, tmp_path, finetune):
    """The processor's files as they were; no sampling habits: Qwen2-VL's generation_config.json says top_k 1,
    which a server would take where a request does not say otherwise. A reply ends with what is taught as the
    end, which neither this file nor the tokenizer names.
    """
    folder = shutil.copytree(tiny_model("qwen2_vl"), tmp_path / "habits")
    habits = {"do_sample": True, "top_k": 1, "top_p": 0.001, "temperature": 0.01, "eos_token_id": [14, 1]}
    tiny.edit(folder / "generation_config.json", **habits)
    (folder / "additional_chat_templates").mkdir()
    template = (folder / "chat_template.jinja").rename(folder / "additional_chat_templates" / "default.jinja")
    template.write_text(template.read_text().replace("<eos>", "<end_of_utterance>"))
    finetune("--batch-size 4", model=folder)
    kept = "tokenizer.json", "preprocessor_config.json", "processor_config.json"
    for name in (*kept, template.relative_to(folder)):
        assert (tmp_path / "m" / name).read_bytes() == (folder / name).read_bytes()
    made = recipe(tmp_path / "m")
    assert made["rows"] == 8 and made["steps"] == 2 and made["init"] == str(folder)
    assert made["label_tokens"] > 0 and made["rows_left_out"] == 0 and made["loss"] == log(tmp_path / "m")[-1]
    saved = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert saved.pop("eos_token_id") == [15, 1, 14] and saved.pop("pad_token_id") == 0
    more = {name for name, value in saved.items() if value is not None}
    assert not more - {"transformers_version", "_from_model_config"}


# ---------------------------------------------------------------- how an output was made


def test_an_output_is_skipped_refused_or_made_anew(tiny_model, tmp_path, finetune, refused):
    """The same recipe skips, another is refused by name; what does not change the result may differ."""
    model, previous = (shutil.copytree(tiny_model("llava"), tmp_path / name) for name in ("base", "previous"))
    files = {"model": model, "previous": previous}
    assert "8 rows, 1 steps, loss " in finetune(**files)
    assert finetune("--micro-batch 2 --save-steps 7", **files) == f"skip {tmp_path / 'm'}\n"
    (previous / "added.py").write_text("# another content, which --init base does not read\n")
    assert finetune(**files) == f"skip {tmp_path / 'm'}\n"
    line = refused("--batch-size 4", **files)
    assert "batch_size was 128, is 4" in line and "--force" in line
    with stopped("mathse.train.fit.save_model"):
        finetune("--limit 3 --force", **files)
    assert len(read_rows(tmp_path / "m.train.jsonl")) == 8  # what stood there stands
    (model / "added.py").write_text("# another model\n")
    assert "has another content" in refused(**files)
    assert "8 rows, 2 steps" in finetune("--batch-size 4 --force", **files)
    left = [path.name for path in (tmp_path / "m").iterdir()]
    assert not [name for name in left if name.startswith(("checkpoint", "lock"))]


def test_a_training_that_is_killed_goes_on_exactly(words, finetune, tmp_path, python):
    """SIGKILL between two checkpoints, then an end when the recipe is complete and the folder not yet in its
    place: the same log and weights.
    """
    flags, part = "--epochs 9 --lr 1e-3 --batch-size 2 --save-steps 5", tmp_path / "killed.part"
    finetune(flags, output="whole")
    command = [python, "04_finetune.py", *words(flags, output="killed")]
    begun = begin(command, lambda _: lines_of(part / "train_log.jsonl") >= 13, stdout=DEVNULL, stderr=DEVNULL)
    kill(begun)
    with stopped("mathse.recipe.remove"):  # right before the rename
        finetune(flags, output="killed")
    assert recipe(part)["steps"] == 36 and not (tmp_path / "killed").exists()
    (tmp_path / "killed.train.jsonl.99999999.part").write_text("of a call that was killed")
    assert "resumed at step 35" in finetune(flags, output="killed")
    assert not [*tmp_path.glob("*.part")]
    whole, killed = recipe(tmp_path / "whole"), recipe(tmp_path / "killed")
    for name in ("rows", "steps", "loss", "label_tokens", "rows_left_out", "init", "flags", "inputs"):
        assert whole[name] == killed[name]
    for name in ("step", "loss", "lr", "grad_norm", "tokens", "left_out"):
        assert log(tmp_path / "whole", name) == log(tmp_path / "killed", name)
    assert_alike(tmp_path / "whole", tmp_path / "killed", most=0.0)


# ---------------------------------------------------------------- the rows, without a model


def verified(name: str, sample: int = 0, **changes) -> dict:
    made = {"id": name, "question": "What?", "images": [], "sample": sample, "prompt": f"Solve {name}."}
    return made | {"response": f"by {name}", "finish": "stop", "status": "correct"} | changes


def choice(*paths, **flags) -> argparse.Namespace:
    usual = {"orm": False, "binary": False, "per_problem": 4, "wrong_ratio": 1.0, "limit": 0, "seed": 0}
    return argparse.Namespace(input=[str(path) for path in paths], **usual | flags)


def written(module, args: argparse.Namespace, path) -> list[dict]:
    """The training file as main() lets it be written."""
    choose, make = (partial(part, args=args) for part in (module.choose_rows, module.training_row))
    write_training_file(path, args.input, args.limit, choose, make).replace(path)
    return read_rows(path)


def test_a_student_learns_the_rows_own_prompt_and_a_judge_the_judges(stage, images, tmp_path):
    """Nothing of a row's prompt is rendered anew; a judge's is that of the stage that asks it. Images stand
    where the question's marks are; a response has none.
    """
    shown = {"question": "Is <image> larger than <image>?", "images": images[:2]}
    shown["prompt"] = f"Solve {{this}}: {shown['question']}"
    told = {"status": "wrong", "teacher_check": "wrong", "error_step": 2, "error_analysis": "It is 4, é."}
    wrong = verified("a", response="It is <image> <|im_end|>.", **shown, **told)
    correct = verified("a", 1, response="It is <image>.", **shown)
    path = write_rows(tmp_path / "v.jsonl", [wrong, correct])

    def said(**flags) -> list[tuple[str]]:
        rows = written(stage("04_finetune"), choice(path, **flags), tmp_path / "t.jsonl")
        assert not any("weight" in row for row in rows)
        return [tuple(message["content"] for message in row["messages"]) for row in rows]

    assert said() == [(shown["prompt"], "It is < image>.")]
    asked = [user_message(common.judge_prompt(row), row["images"])[0]["content"] for row in (wrong, correct)]
    assert all(text.count("<image>") == 2 and shown["question"] in text for text in asked)
    why = '{"status": "WRONG", "error_step": 2, "error_analysis": "It is 4, é."}'
    fine = '{"status": "CORRECT", "error_step": null, "error_analysis": null}'
    assert said(orm=True) == [*zip(asked, (why, fine))]
    assert said(orm=True, binary=True) == [*zip(asked, ('{"status": "WRONG"}', '{"status": "CORRECT"}'))]


def test_which_rows_an_orm_learns(stage, tmp_path):
    """Wrong ones that the teacher explains, correct ones of any file, each once; not what an ORM or the
    answer check alone calls wrong, nor what a file explains and another calls correct.
    """
    told = {"status": "wrong", "teacher_check": "wrong", "error_step": 1, "error_analysis": "No."}
    annotated = [verified("a", k, response=f"wrong {k}", **told) for k in range(3)]
    annotated += [verified("a", 3, response="right", teacher_check="correct")]
    annotated += [verified("a", 4, response="unclear", **told | {"status": "undecided"})]
    annotated += [verified("a", 5, response="untold", **told | {"error_analysis": None})]
    plain = [verified("a", 0, response=" right\n"), verified("a", 1, response="also right")]
    plain += [verified("a", 2, response="wrong 1"), verified("b", 0, response="wrong 1")]
    plain += [verified("a", 3, response="unclear")]
    plain += [verified("b", 1, response="no", status="wrong", error_step=1, error_analysis="The ORM's own.")]
    plain += [verified("b", 2, response="no.", status="wrong"), verified("b", 3, finish="length")]
    paths = [write_rows(tmp_path / f"{n}.jsonl", rows) for n, rows in enumerate((annotated, plain))]
    expected = {("wrong", "a", f"wrong {k}") for k in range(3)} | {("correct", "b", "wrong 1")}
    expected |= {("correct", "a", "right"), ("correct", "a", "also right")}
    for order in (paths, paths[::-1]):
        rows = written(stage("04_finetune"), choice(*order, orm=True), tmp_path / "t.jsonl")
        asked = [row["messages"][0]["content"].partition("Solution:")[2].split("\n\n")[0] for row in rows]
        found = [(row["status"], row["id"], text.strip()) for row, text in zip(rows, asked)]
        assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("flag, field", [("", "prompt"), ("--orm", "question")])
def test_a_row_without_its_prompt_is_refused_by_name(flag, field, tmp_path, refused):
    row = {name: value for name, value in verified("a").items() if name != field}
    path = write_rows(tmp_path / "v.jsonl", [row])
    assert f"{path}:1: {field}: missing" in refused(flag, input=path)
    assert {file.name for file in tmp_path.iterdir()} == {"v.jsonl", "mixed.jsonl"}


def test_what_is_chosen_does_not_hang_on_the_order_of_the_rows(stage, tmp_path):
    """By 03 and 04: replies arrive in another order each time, and after a kill in yet another one."""
    rows, chosen = [], []
    for k in range(48):
        status = "correct" if k % 2 and k < 24 else "wrong"
        told = {"status": status, "teacher_check": status, "error_analysis": "a" if k % 3 else None}
        told |= {"response": f"r{k % 3} {k}" if k % 2 else "same", "error_step": "s" if k % 3 else None}
        rows.append(verified(f"p{k // 4}", k % 4, **told))
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        path = write_rows(tmp_path / "v.jsonl", rows)
        settings = [choice(path, orm=orm, per_problem=1) for orm in (True, False)]
        chosen.append([stage("04_finetune").choose_rows(each) for each in settings])
        drafts = argparse.Namespace(input=[path], drafts=2, limit=0)
        chosen[-1].append(stage("03_reflect").choose_drafts(drafts, check=True))
    assert chosen[0] == chosen[1] == chosen[2]
    assert [*map(len, chosen[0])] == [12, 6, 12]


def test_choosing_rows_does_not_hold_their_texts(stage, tmp_path):
    draw = random.Random(0)
    texts = [" ".join(str(draw.randrange(10**6)) for _ in range(1000)) for _ in range(100)]
    rows = [verified(str(k // 8), k, response=text) for k, text in enumerate(texts)]
    args = choice(write_rows(tmp_path / "v.jsonl", rows))
    tracemalloc.start()
    chosen = stage("04_finetune").choose_rows(args)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(chosen) == 4 * 13 and peak < sum(map(len, texts)) / 2


def test_a_training_row_names_its_files_from_its_own_folder(stage, tmp_path):
    """That of its verdict and, of a reflection, that of its draft. (What stands there: test_loop.)"""
    draft = {"verified_in": "../round_2/verified.jsonl", "origin": "round-2", "sample": 1}
    (tmp_path / "final").mkdir()
    path = write_rows(tmp_path / "final" / "verified.jsonl", [verified("c", draft_of=draft)])
    (row,) = written(stage("04_finetune"), choice(path), tmp_path / "a" / "b" / "train.jsonl")
    assert row["verified_in"] == "../../final/verified.jsonl"
    assert row["draft_of"] == draft | {"verified_in": "../../round_2/verified.jsonl"}


def test_a_training_file_is_an_input_again(stage, tmp_path):
    """Also of files whose rows have one origin, and behind an empty file."""
    files = [write_rows(tmp_path / f"{name}.jsonl", [verified("a", response=name)]) for name in ("x", "y")]
    rows = written(stage("04_finetune"), choice(*files), tmp_path / "train.jsonl")
    empty = write_rows(tmp_path / "empty.jsonl", [])
    again = written(stage("04_finetune"), choice(empty, tmp_path / "train.jsonl"), tmp_path / "again.jsonl")
    assert again == rows and [row["messages"][-1]["content"] for row in rows] == ["x", "y"]


def test_balance_of_an_orms_training_data(stage):
    """As many correct as wrong ones; no subject tells the verdict: at most four of one kind for each of the
    other.
    """
    counts = {("correct", "easy"): 50, ("wrong", "easy"): 20, ("correct", "hard"): 2, ("wrong", "hard"): 90}
    counts |= {("wrong", "unsolved"): 9}
    keys = {key: [(*key, k) for k in range(count)] for key, count in counts.items()}
    balanced = stage("04_finetune").balanced
    chosen = balanced(keys, 0)
    kinds, subjects = Counter(key[0] for key in chosen), Counter(key[:2] for key in chosen)
    assert len(set(chosen)) == len(chosen) and kinds == {"correct": 32, "wrong": 32}
    most = {"easy": 20, "hard": 8, "unsolved": 4}
    assert all(subjects["wrong", subject] <= count for subject, count in most.items())
    assert balanced(keys, 0) == chosen != balanced(keys, 1)
    assert balanced({("correct", "a"): ["x"]}, 0) == []
    few = {("correct", "a"): ["correct"] * 9, ("wrong", "a"): ["wrong"] * 12}
    for ratio, expected in ((1.0, (9, 9)), (2.0, (6, 12)), (0.5, (9, 5))):  # wrong ones for each correct one
        kinds = Counter(balanced(few, 0, ratio))
        assert (kinds["correct"], kinds["wrong"]) == expected, ratio


def test_pick_diverse(stage):
    module = stage("04_finetune")
    texts = {"a": "x is 1 + 2", "b": "x  is 1 + 2", "c": "x is 1 + 3", "d": "quite another way"}
    rows = [(key, module.shingles(text)) for key, text in texts.items()]
    assert module.pick_diverse(rows, 2) == ["a", "d"]
    assert module.pick_diverse(rows, 9) == ["a", "d", "c"]
    assert module.pick_diverse([rows[0], rows[2], rows[1]], 1) == ["a"]
    long = [" ".join(f"w{k * way}" for k in range(500)) for way in (1, 1, 1, 7)]
    long[2] += " 5"  # two long texts that hardly differ are two texts, and alike
    rows = [(key, module.shingles(text)) for key, text in enumerate(long)]
    assert module.pick_diverse(rows, 9) == [0, 3, 2]


def test_learning_rate(stage):
    values = [stage("04_finetune").learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert values[9] == 1.0 and values[0] == 0.1 and values[-1] < 0.01
    assert values == sorted(values[:10]) + sorted(values[10:], reverse=True)


def test_plan_keeps_groups_whole(tmp_path):
    """A problem's rows are in one micro-batch where they fit, and one with other images or earlier text is
    another group.
    """
    rows = [row(str(name), k, [f"{name}.png"], "Q", "x" * k) for name in range(9) for k in range(3)]
    rows += [rows[0] | {"sample": 9, "images": ["1.png"]}]
    asked = {"role": "user", "content": "Look: <image>Q"}
    rows += [rows[0] | {"sample": 10, "messages": [asked, rows[0]["messages"][1]]}]
    training = TrainingRows(write_rows(tmp_path / "t.jsonl", rows))
    assert len({*training.group_of}) == 11
    ((micro,),) = plan_steps(training, argparse.Namespace(epochs=1.0, seed=0, batch_size=100), 4, 1)
    assert sorted(number for numbers in micro for number in numbers) == list(range(29))
    assert max(map(len, micro)) <= 4
    places = {(training.group_of[number], place) for place, ns in enumerate(micro) for number in ns}
    assert len(places) == 11


@pytest.mark.parametrize("world, most", [(1, 5), (2, 16), (2, 7), (3, 4), (4, 1)])
def test_processes_get_equal_shares(tmp_path, world, most):
    """Every row once an epoch, in as many micro-batches a process; of those computed at the same time none is
    much longer than another, if a process could take its part of the step at once.
    """
    sizes = {"a": (30, 4), "b": (900, 1), "c": (250, 3), "d": (80, 4), "e": (500, 4)}
    made = [row(name, k, [], name * size, "x") for name, (size, count) in sizes.items() for k in range(count)]
    rows = TrainingRows(write_rows(tmp_path / "t.jsonl", made))

    def plan(epochs: float, batch_size: int) -> list:
        args = argparse.Namespace(epochs=epochs, seed=0, batch_size=batch_size)
        return plan_steps(rows, args, most, world)

    assert len(plan(0.001, 12)) == 1 and len(plan(2.0, 12)) == 3
    planned = []
    for shares in plan(2.0, 12):
        micro = [numbers for share in shares for numbers in share]
        assert len(shares) == world and len({*map(len, shares)}) == 1 and max(map(len, micro)) <= most
        assert all(share[0] for share in shares)  # empty ones stand last
        planned += [number for numbers in micro for number in numbers]
    assert sorted(planned) == sorted([*range(16)] * 2)
    if most == 16:
        (shares,) = plan(1.0, 16)
        lengths = [sum(rows.sizes[number] for number in numbers) for (numbers,) in shares]
        assert max(lengths) < 1.1 * min(lengths), lengths
