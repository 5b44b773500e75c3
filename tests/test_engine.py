"""Sampling and training on tiny random models of four architectures."""

import argparse
import importlib
import json
import sys

import pytest
import torch
from conftest import ROOT, read_rows, write_rows
from PIL import Image

import common
import engine

KINDS = ["qwen2_vl", "internvl", "idefics3", "llava"]


def settings(**changes) -> argparse.Namespace:
    values = dict(temperature=0.0, top_p=1.0, top_k=0, max_tokens=12, max_pixels=10_000, batch_size=64, trust_remote_code=False, concurrency=4)
    return argparse.Namespace(**(values | changes))


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for index, (count, text) in enumerate([(1, "How many?"), (0, "1 + 1 = ?"), (2, "Which of the two pictures is larger, and why?"), (1, "x")]):
        paths = []
        for number in range(count):
            path = folder / f"{index}_{number}.png"
            Image.effect_noise((40 + 9 * index, 30), 90).convert("RGB").save(path)
            paths.append(str(path))
        rows.append({"id": str(index), "question": text, "images": paths})
    return rows


def requests(rows: list[dict], samples: int = 1) -> list[engine.Request]:
    return [engine.Request(row, common.solve_messages(row), {k: common.derive_seed(0, row["id"], k) for k in range(samples)}) for row in rows]


def texts(generate, rows, samples=1) -> dict:
    return {(reply.row["id"], reply.sample): (reply.text, reply.finish, reply.reason) for reply in generate(requests(rows, samples))}


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_generate_and_does_not_depend_on_the_batch(kind, tiny_model, questions):
    spec = str(tiny_model(kind))
    together = texts(engine.open_model(spec, settings()), questions)
    alone = texts(engine.open_model(spec, settings(batch_size=1)), questions)
    assert together == alone and all(reason is None for _, _, reason in together.values())
    processor, model = common.load_processor(spec), common.load_model(spec, "cpu", torch.float32)
    for row in questions:
        images = [common.open_image(path, 10_000) for path in row["images"]]
        inputs = common.encode_prompts(processor, [common.chat_parts(common.solve_messages(row), images)])
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert processor.tokenizer.decode(tokens, skip_special_tokens=True).strip() == together[row["id"], 0][0]


@pytest.mark.parametrize("kind", ["qwen2_vl", "idefics3"])
def test_samples_depend_on_their_seed_only(kind, tiny_model, questions):
    spec = str(tiny_model(kind))
    many = texts(engine.open_model(spec, settings(temperature=1.0)), questions, 4)
    few = texts(engine.open_model(spec, settings(temperature=1.0, batch_size=4)), questions[:1], 4)
    assert len({many["0", k][0] for k in range(4)}) > 1
    assert few == {key: value for key, value in many.items() if key[0] == "0"}


def test_sampled_tokens_follow_the_distribution(tiny_model):
    """First tokens of many samples against the model's own probabilities (chi-square, ten likeliest tokens and the rest)."""
    spec, row = str(tiny_model("qwen2_vl")), {"id": "a", "question": "x", "images": []}
    processor, model = common.load_processor(spec), common.load_model(spec, "cpu", torch.float32)
    inputs = dict(common.encode_prompts(processor, [common.chat_parts(common.solve_messages(row))]))
    seeds = [[common.derive_seed("chi", k) for k in range(3000)]]
    model.generation_config.eos_token_id = None
    tokens, logprobs = engine.decode_batch(model, inputs, seeds, 1, 0.7, settings())
    probability = (model(**inputs).logits[0, -1].float() / 0.7).softmax(-1)
    raw = model(**inputs).logits[0, -1].float().log_softmax(-1)
    assert torch.allclose(logprobs[:, 0], raw[tokens[:, 0]], atol=1e-4)  # at temperature 1, whatever it was sampled at
    top = probability.topk(10).indices
    seen = torch.stack([(tokens[:, 0] == token).sum() for token in top]).float()
    expected = probability[top] * 3000
    rest = 3000 - expected.sum()
    chi = (((seen - expected) ** 2 / expected).sum() + (3000 - seen.sum() - rest) ** 2 / rest).item()
    assert chi < 29.6  # 0.1 % of 10 degrees of freedom


def test_a_bad_picture_is_a_record(tiny_model, questions, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes((b"\x89PNG\r\n\x1a\n" + b"\0" * 50))
    replies = texts(engine.open_model(str(tiny_model("llava")), settings()), [*questions, {"id": "bad", "question": "q", "images": [str(bad)]}])
    assert replies["bad", 0][1] == "error" and replies["bad", 0][2] and sum(finish == "error" for _, finish, _ in replies.values()) == 1


def test_a_prompt_longer_than_the_context_is_a_record(tiny_model, questions):
    long = {"id": "long", "question": "word " * 3000, "images": []}
    replies = texts(engine.open_model(str(tiny_model("llava")), settings()), [*questions, long])
    assert replies["long", 0][1] == "error" and "context" in replies["long", 0][2] and sum(finish == "error" for _, finish, _ in replies.values()) == 1


@pytest.fixture
def training_file(questions, tmp_path):
    rows = [
        {"messages": [*common.solve_messages(row), {"role": "assistant", "content": f"It is {index}{'!' * index}"}], "images": row["images"], "id": row["id"], "sample": 0, "origin": "teacher"}
        for index, row in enumerate(questions)
    ]  # fmt: skip
    return write_rows(tmp_path / "rows.jsonl", rows)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_and_loss(kind, tiny_model, training_file, stage):
    """Labels cover the reply and its end, and the batched loss equals one row at a time with full logits."""
    module = stage("04_finetune")
    spec = str(tiny_model(kind))
    processor, model = common.load_processor(spec), common.load_model(spec, "cpu", torch.float32)
    rows = module.TrainingRows(training_file)
    args = argparse.Namespace(max_pixels=10_000, max_length=2000)
    batch, missing = module.MicroBatches(rows, [list(range(len(rows)))], processor, args)[0]
    assert missing == 0
    total, count = 0.0, 0
    for index in range(len(rows)):
        labels = batch["labels"][index]
        assert processor.tokenizer.decode(labels[labels != -100]).startswith(f"It is {index}") and processor.tokenizer.decode(labels[labels != -100]).endswith("<eos>")
        single, _ = module.MicroBatches(rows, [[index]], processor, args)[0]
        row_labels = single.pop("labels")
        logits = model(**single).logits[0, :-1].float()
        keep = row_labels[0, 1:] != -100
        total += torch.nn.functional.cross_entropy(logits[keep], row_labels[0, 1:][keep], reduction="sum").item()
        count += int(keep.sum())
    assert module.sum_loss(model, batch, count).item() == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_overfits_then_answers(kind, tiny_model, training_file, questions, run, tmp_path):
    done = run("04_finetune.py", "--input", training_file, "--output", tmp_path / "model", "--model", tiny_model(kind), "--epochs", 120, "--lr", "1e-2",
               "--batch-size", 4, "--max-pixels", 10_000, "--workers", 0, "--warmup", 0.05)  # fmt: skip
    assert done.returncode == 0, done.stderr
    replies = texts(engine.open_model(str(tmp_path / "model"), settings()), questions)
    assert [replies[row["id"], 0][0] for row in questions] == [f"It is {index}{'!' * index}" for index in range(4)]


def test_training_resumes_exactly(tiny_model, training_file, tmp_path, stage, monkeypatch, run):
    """Stopped after a checkpoint and called again: the same log as a run without a stop."""
    common_flags = ["--input", training_file, "--model", tiny_model("llava"), "--epochs", 6, "--lr", "1e-3", "--batch-size", 2, "--max-pixels", 10_000, "--workers", 0, "--save-steps", 3]
    whole = run("04_finetune.py", *common_flags, "--output", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    module = importlib.import_module("04_finetune")
    saved, calls = module.save_checkpoint, []

    def stop_after_two(*arguments):
        saved(*arguments)
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_checkpoint", stop_after_two)
    monkeypatch.setattr(sys, "argv", ["04_finetune.py", *map(str, common_flags), "--output", str(tmp_path / "stopped")])
    with pytest.raises(KeyboardInterrupt):
        module.main()
    again = run("04_finetune.py", *common_flags, "--output", tmp_path / "stopped")
    assert again.returncode == 0 and "resumed at step 6" in again.stdout, again.stderr
    logs = [[(entry["step"], round(entry["loss"], 5)) for entry in read_rows(tmp_path / name / "train_log.jsonl")] for name in ("whole", "stopped")]
    assert logs[0] == logs[1] and len(logs[0]) == 12


def test_two_processes_train_alike(tiny_model, training_file, tmp_path, run):
    """Two CPU processes take the same steps as one, also where three micro-batches are dealt to two."""
    import subprocess

    flags = ["--input", training_file, "--model", tiny_model("llava"), "--epochs", 3, "--lr", "1e-3", "--batch-size", 3, "--micro-batch", 1, "--max-pixels", 10_000, "--workers", 0]
    one = run("04_finetune.py", *flags, "--output", tmp_path / "one")
    assert one.returncode == 0, one.stderr
    import os

    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517", "04_finetune.py", *map(str, flags), "--output", str(tmp_path / "two")]
    two = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}, timeout=300)
    assert two.returncode == 0, two.stderr[-2000:]
    logs = [[entry["loss"] for entry in read_rows(tmp_path / name / "train_log.jsonl")] for name in ("one", "two")]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)


def test_saved_folder_has_the_processors_files(tiny_model, training_file, tmp_path, run):
    done = run("04_finetune.py", "--input", training_file, "--output", tmp_path / "m", "--model", tiny_model("qwen2_vl"), "--batch-size", 4, "--workers", 0)
    assert done.returncode == 0, done.stderr
    for name in ("tokenizer.json", "preprocessor_config.json", "processor_config.json", "chat_template.jinja"):
        assert (tmp_path / "m" / name).read_bytes() == (tiny_model("qwen2_vl") / name).read_bytes()
    assert json.loads((tmp_path / "m" / "training.json").read_text())["rows"] == 4
