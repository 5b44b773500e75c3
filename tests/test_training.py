"""Fine-tuning tiny random models of seven architectures: what is learnt, and that it is learnt exactly."""

import argparse
import inspect
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, read_rows, write_rows
from PIL import Image

import common
import engine
import batches
import packing
import tiny

KINDS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "llava", "llava_onevision"]
FLAGS = ["--max-pixels", 10_000, "--workers", 0]
SETTINGS = argparse.Namespace(max_pixels=10_000, max_length=2000)


def row(name: str, sample: int, images: list[str], prompt: str, reply: str) -> dict:
    return {"messages": [*common.user_message(prompt, images), {"role": "assistant", "content": reply}], "images": images, "id": name, "sample": sample, "origin": "teacher"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 256, (30 + 9 * index, 40 + 20 * index, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    return [str(folder / f"{index}.png") for index in range(3)]


@pytest.fixture(scope="module")
def mixed_rows(pictures) -> list[dict]:
    """Three answers of a problem, one to two pictures, text only, and what a judge is shown: two candidates of a problem."""
    rows = [row("a", k, pictures[:1], "What is it?", reply) for k, reply in enumerate(["one", "a longer reply it is", "third"])]
    rows += [row("b", 0, pictures[1:], "And these?", "yes"), *(row("c", k, [], "Text only?", reply) for k, reply in enumerate(["no", "well, hm"]))]
    return rows + [row("d", k, pictures[2:], f"Is {'very ' * k}right right?\nCheck.", f"verdict {k}") for k in range(2)]


@pytest.fixture
def mixed_file(mixed_rows, tmp_path):
    return write_rows(tmp_path / "rows.jsonl", mixed_rows)


@pytest.fixture
def eight_file(pictures, tmp_path):
    return write_rows(tmp_path / "rows.jsonl", [row(str(k), 0, pictures[k % 3 : k % 3 + k % 2], f"Number {k}?", f"It is {k}{'!' * k}") for k in range(8)])


@pytest.fixture
def finetune(stage, monkeypatch, capsys):
    """Call 04_finetune.py in this process, which saves the time to load torch; what it printed. A mistake raises SystemExit."""

    def call(*flags: object) -> str:
        monkeypatch.setattr(sys, "argv", ["04_finetune.py", *map(str, [*flags, *FLAGS])])
        stage("04_finetune").main()
        return capsys.readouterr().out

    return call


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Every gradient within 1e-4 of its size; of those that are nothing but rounding, of the largest gradient's size."""
    floor = 1e-4 * max(gradient.norm() for gradient in theirs.values())
    assert {name for name, gradient in ours.items() if gradient.norm() > floor} <= theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-4 * max(gradient.norm(), floor), name


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_one_row_at_a_time(kind, tiny_model, mixed_file, mixed_rows, stage):
    """Packed with shared prompts, and padded, against full logits of one unpadded sequence a row; labels cover the reply and its end."""
    module, spec = stage("04_finetune"), str(tiny_model(kind))
    processor, model = common.load_processor(spec), common.load_model(spec, "cpu", torch.float32)
    rows = module.TrainingRows(mixed_file)
    numbers = module.deal(rows, list(range(len(rows))), 100, 1)[0][0]
    total, labels = 0.0, []
    for number in numbers:
        batch, _ = module.MicroBatches(rows, [[number]], processor, SETTINGS, packed=False)[0]
        learnt = batch.targets[0][batch.targets[0] != batches.IGNORE]
        labels += learnt.tolist()
        logits = model(**{name: value for name, value in batch.inputs.items() if name != "logits_to_keep"}, use_cache=False).logits[0, -len(learnt) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits.float(), learnt, reduction="sum")
        assert processor.tokenizer.decode(learnt) == rows[number]["messages"][-1]["content"] + "<eos>"
    total.backward()
    expected = gradients(model)
    pack = packing.Packing(model)
    for packed in (True, False):
        model.zero_grad()
        pack.use(packed)
        batch, left_out = module.MicroBatches(rows, [numbers], processor, SETTINGS, packed)[0]
        assert left_out == 0 and batch.targets[batch.targets != batches.IGNORE].tolist() == labels
        loss = pack.losses(model, batch).sum()
        assert loss.item() == pytest.approx(total.item(), rel=1e-5)
        loss.backward()
        assert_equal(gradients(model), expected)
        if packed:  # no padding, and each question once
            singles = [len(processor.tokenizer(prompt)["input_ids"]) for prompt in ("What is it?", "Text only?")]
            assert batch.inputs["input_ids"].shape == (1, batch.tokens) and sum(map(bool, batch.shared)) == 3 and sum(batch.shared) > sum(singles)
            tokens = batch.tokens
        else:
            assert batch.tokens > 1.3 * tokens
    packed, padded, alone = (module.MicroBatches(rows, [chosen], processor, SETTINGS, kind)[0][0] for chosen, kind in ((numbers, True), (numbers, False), (numbers[:1], False)))
    assert pack.differs(model, packed, padded, alone, exact=True) == ""


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
    tokenizer = tiny.make_tokenizer()
    template = "{% for m in messages %}{% set role, text = m['role'], m['content'][0]['text'] %}" + turn + "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    processor = argparse.Namespace(tokenizer=tokenizer, apply_chat_template=lambda chat, **flags: tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, **flags))
    rows = [row("a", 0, [], "What is it?", reply) for reply in ("It is 4.", "")]
    first, empty = map(tokenizer.decode, batches.reply_tokens(processor, rows))
    assert first == learnt and empty.count("<eos>") + empty.count("<end_of_utterance>") == 1


def test_a_wrong_loss_is_noticed(tiny_model, mixed_file, stage, monkeypatch):
    module, spec = stage("04_finetune"), str(tiny_model("qwen2_vl"))
    processor, model = common.load_processor(spec), common.load_model(spec, "cpu", torch.float32)
    rows = module.TrainingRows(mixed_file)
    packed, padded = (module.MicroBatches(rows, [list(range(len(rows)))], processor, SETTINGS, kind)[0][0] for kind in (True, False))
    positions = packing.Packing.positions
    monkeypatch.setattr(packing.Packing, "positions", lambda self, batch: positions(self, batch) * 2)
    assert "the loss is off by" in packing.Packing(model).differs(model, packed, padded, padded, exact=True)


@pytest.mark.parametrize("batches", ["packed", "padded"])
def test_a_model_that_bounds_its_logits_is_learnt_by_its_own_loss(batches, tiny_model, mixed_file, tmp_path, finetune, monkeypatch):
    """Gemma 4 and Granite go on computing with what the output layer returns: that must be logits then."""
    from transformers import Qwen2VLForConditionalGeneration as Model

    finetune("--input", mixed_file, "--output", tmp_path / "plain", "--model", tiny_model("qwen2_vl"), "--batches", batches)
    forward, scale = Model.forward, [1.0]

    def scaled(self, *arguments, **settings):
        output = forward(self, *arguments, **settings)
        output.logits = output.logits / scale[0]
        return output

    scaled.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(Model, "forward", scaled)
    for scale[0] in (1.0, 1e6):
        finetune("--input", mixed_file, "--output", tmp_path / f"{scale[0]}", "--model", tiny_model("qwen2_vl"), "--batches", batches)
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "1.0"), rel=1e-5)
    assert losses(tmp_path / "1000000.0") == pytest.approx([math.log(len(tiny.SPECIAL) + 256)], rel=1e-4)  # all tokens are as likely


def test_a_first_step_without_any_usable_row_ends_in_one_line(tiny_model, eight_file, tmp_path, finetune, capsys):
    with pytest.raises(SystemExit, match="2"):
        finetune("--input", eight_file, "--output", tmp_path / "m", "--model", tiny_model("qwen2_vl"), "--max-length", 5)
    assert "no row of the first step can be used" in capsys.readouterr().err


def test_a_model_that_drops_attention_is_trained_padded(tiny_model, mixed_file, tmp_path, finetune):
    """The check at the start goes without dropout and would not see it."""
    folder = tmp_path / "dropout"
    shutil.copytree(tiny_model("qwen2_vl"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    assert "(ValueError: attention_dropout 0.5)" in finetune("--input", mixed_file, "--output", tmp_path / "m", "--model", folder, "--epochs", 1)


def test_a_model_that_cannot_be_packed_is_trained_padded(tiny_model, mixed_file, tmp_path, finetune):
    padded = finetune("--input", mixed_file, "--output", tmp_path / "m", "--model", tiny_model("llava_sliding"), "--epochs", 2)
    assert "batches: padded, rows of like length together (ValueError: this model's attention cannot be packed)" in padded
    assert "batches: packed, a question once for its rows: " in finetune("--input", mixed_file, "--output", tmp_path / "p", "--model", tiny_model("llava"))


@pytest.mark.parametrize("way", ["autocast", "weights"])
def test_packed_in_bf16(way, tiny_model, mixed_file, stage):
    """As on a GPU: computed in bf16 from fp32 weights, or all in bf16; within its precision of fp32, and with gradients."""
    module, spec = stage("04_finetune"), str(tiny_model("qwen2_vl"))
    processor, rows = common.load_processor(spec), module.TrainingRows(mixed_file)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        pack = packing.Packing(common.load_model(spec, "cpu", dtype if way == "weights" else torch.float32))
        pack.use(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast" and dtype == torch.bfloat16):
            results.append(pack.losses(pack.model, module.MicroBatches(rows, [list(range(len(rows)))], processor, SETTINGS, True)[0][0]))
        results[-1].sum().backward()
        assert all(gradient.isfinite().all() for gradient in gradients(pack.model).values())
    assert results[1].dtype == torch.float32 and 0 < (results[0] - results[1]).abs().max() < 0.05


def test_logits_in_chunks(tiny_model, mixed_file, stage, monkeypatch):
    """Loss and gradients do not hang on how many logits are computed at a time."""
    module, spec = stage("04_finetune"), str(tiny_model("qwen2_vl"))
    processor, model = common.load_processor(spec), common.load_model(spec, "cpu", torch.float32)
    pack, sizes = packing.Packing(model), []
    pack.use(True)
    batch, _ = module.MicroBatches(module.TrainingRows(mixed_file), [list(range(8))], processor, SETTINGS, True)[0]
    project = pack.head.project
    pack.head.project = lambda hidden: sizes.append(len(hidden)) or project(hidden)
    results = []
    for chunk in (1 << 24, 5 * pack.head.vocabulary):
        monkeypatch.setattr(packing, "CHUNK", chunk)
        model.zero_grad()
        loss = pack.losses(model, batch).sum()
        loss.backward()
        results.append((loss.item(), gradients(model)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6) and sizes[0] == batch.labels and max(sizes[1:]) == 5
    assert_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("kind", KINDS)
def test_overfits_then_answers(kind, tiny_model, eight_file, finetune, tmp_path):
    flags = ["--input", eight_file, "--output", tmp_path / "model", "--model", tiny_model(kind)]
    finetune(*flags, "--epochs", 250, "--lr", "1e-2", "--batch-size", 8, "--micro-batch", 8, "--warmup", 0.05)
    flags = argparse.Namespace(temperature=0.0, top_p=1.0, top_k=0, max_tokens=16, max_pixels=10_000, batch_size=64, trust_remote_code=False)
    rows = read_rows(eight_file)
    replies = engine.open_model(str(tmp_path / "model"), flags)(engine.Request(row, row["messages"][:1], {0: 0}) for row in rows)
    assert {reply.row["id"]: reply.text for reply in replies} == {row["id"]: row["messages"][1]["content"] for row in rows}


def losses(folder) -> list[float]:
    return [entry["loss"] for entry in read_rows(folder / "train_log.jsonl")]


def test_training_resumes_exactly(tiny_model, mixed_file, tmp_path, stage, monkeypatch, finetune):
    """Stopped after a checkpoint and called again: the same log as a run without a stop."""
    flags = ["--input", mixed_file, "--model", tiny_model("llava"), "--epochs", 3, "--lr", "1e-3", "--batch-size", 2, "--save-steps", 3]
    finetune(*flags, "--output", tmp_path / "whole")
    module = stage("04_finetune")
    saved, calls = module.save_checkpoint, []

    def stop_after_two(*arguments):
        saved(*arguments)
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_checkpoint", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        finetune(*flags, "--output", tmp_path / "stopped")
    assert "resumed at step 6" in finetune(*flags, "--output", tmp_path / "stopped")
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "stopped"), rel=1e-5) and len(losses(tmp_path / "whole")) == 12
    whole, stopped = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("whole", "stopped"))
    assert whole["label_tokens"] == stopped["label_tokens"] > 0


def test_a_checkpoint_of_several_gpus_is_not_gone_on_with_by_one(tiny_model, eight_file, tmp_path, finetune, capsys):
    flags = ["--input", eight_file, "--output", tmp_path / "m", "--model", tiny_model("llava"), "--max-length", 5]
    with pytest.raises(SystemExit):  # no row is usable: the folder is begun, not more
        finetune(*flags)
    (tmp_path / "m.part" / "checkpoint-2" / "pytorch_model_fsdp_0").mkdir(parents=True)
    with pytest.raises(SystemExit, match="2"):
        finetune(*flags)
    assert "checkpoint-2: was saved by several GPUs; go on with several, or remove" in capsys.readouterr().err


def with_two(script: str, *flags: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, *map(str, [*flags, *FLAGS])]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize("batches", ["packed", "padded"])
def test_two_processes_train_alike(batches, tiny_model, mixed_file, tmp_path, finetune):
    """Two CPU processes take the same steps as one, also where three micro-batches are dealt to two, and some have no picture."""
    flags = ["--input", mixed_file, "--model", tiny_model("llava"), "--batches", batches, "--epochs", 3, "--lr", "1e-3", "--batch-size", 5, "--micro-batch", 2, "--hold-out", 1]
    finetune(*flags, "--output", tmp_path / "one")
    two = with_two("04_finetune.py", *flags, "--output", tmp_path / "two")
    assert two.returncode == 0, two.stderr[-2000:]
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-4)
    held = [[entry["validation_loss"] for entry in read_rows(tmp_path / name / "train_log.jsonl") if "validation_loss" in entry] for name in ("one", "two")]
    assert held[0] == pytest.approx(held[1], rel=1e-4) and len(held[0]) == 3


@pytest.mark.parametrize("kind, bf16, more", [("llava", "0", []), ("qwen2_vl", "1", ["--lora", 4, "--freeze", "vision", "--recompute", 0.5])], ids=["all", "adapters"])
def test_a_sharded_model_trains_alike(kind, bf16, more, tiny_model, mixed_file, tmp_path, finetune):
    """Two processes that each hold half of the model (FSDP2), killed after a sharded checkpoint and called again: the steps and the weights of one process."""
    flags = ["--input", mixed_file, "--model", tiny_model(kind), "--epochs", 3, "--lr", "1e-3", "--batch-size", 5, "--micro-batch", 2, "--save-steps", 2, *more]
    finetune(*flags, "--output", tmp_path / "one")
    assert with_two("tests/sharded.py", *flags, "--output", tmp_path / "two", STOP_AFTER="1", BF16=bf16).returncode != 0
    again = with_two("tests/sharded.py", *flags, "--output", tmp_path / "two", BF16=bf16)
    assert again.returncode == 0 and "resumed at step 2" in again.stdout and "batches: packed" in again.stdout, again.stdout + again.stderr[-2000:]
    close = {"rel": 1e-4} if bf16 == "0" else {"abs": 0.01}
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), **close) and len(losses(tmp_path / "two")) == 5
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert json.loads((tmp_path / "two" / "config.json").read_text())["dtype"] == {"0": "float32", "1": "bfloat16"}[bf16]
    assert one.keys() == two.keys() and all(torch.allclose(one[name], two[name].float(), atol=1e-5 if bf16 == "0" else 1e-3) for name in one)


def weights(folder) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_held_out_problems_are_not_trained_on(tiny_model, eight_file, tmp_path, finetune, capsys):
    finetune("--input", eight_file, "--output", tmp_path / "m", "--model", tiny_model("qwen2_vl"), "--epochs", 40, "--lr", "1e-2", "--batch-size", 6, "--hold-out", 2)
    assert json.loads((tmp_path / "m" / "training.json").read_text())["rows"] == 6
    log = read_rows(tmp_path / "m" / "train_log.jsonl")
    assert all("validation_loss" in entry for entry in log) and 2 * log[-1]["loss"] < log[-1]["validation_loss"]
    with pytest.raises(SystemExit, match="2"):
        finetune("--input", eight_file, "--output", tmp_path / "n", "--model", tiny_model("qwen2_vl"), "--hold-out", 8)
    assert capsys.readouterr().err.splitlines()[-1] == "error: --hold-out: 8: there are 8 problems to train on; leave some"


@pytest.mark.parametrize("kind", ["qwen2_vl", "idefics3"])
def test_a_frozen_vision_tower_stays(kind, tiny_model, mixed_file, tmp_path, finetune):
    flags = ["--input", mixed_file, "--model", tiny_model(kind), "--epochs", 2, "--lr", "1e-2", "--batch-size", 4, "--freeze", "vision"]
    finetune(*flags, "--output", tmp_path / "m")
    before, after = weights(tiny_model(kind)), weights(tmp_path / "m")
    changed = {name: not torch.equal(before[name], after[name]) for name in before}
    text = {name for name in changed if not any(word in name for word in ("visual", "vision", "connector"))}
    assert not any(changed[name] for name in changed.keys() - text) and sum(changed[name] for name in text) > len(text) / 2 and len(changed) > len(text)


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_a_frozen_tower_are_kept(kind, tiny_model, mixed_file, stage):
    """The second time the tower is passed by, for other groups of the same questions, too: the same losses and gradients, packed and padded."""
    module, spec = stage("04_finetune"), str(tiny_model(kind))
    processor, rows = common.load_processor(spec), module.TrainingRows(mixed_file)
    model = module.prepare_model(argparse.Namespace(lora=0, freeze="vision", recompute=None, trust_remote_code=False), spec, "cpu", "sdpa", False)
    pack = packing.Packing(model)
    groups = [list(range(len(rows))), [number for number in range(len(rows)) if rows[number]["id"] in "bcd"]]
    groups[0].sort(key=lambda number: rows.questions[number])
    for packed in (True, False):
        pack.use(packed)
        made = [module.MicroBatches(rows, [numbers], processor, SETTINGS, packed)[0][0] for numbers in groups]
        results = []
        for kept in (False, True):
            if kept:
                pack.keep_features(1 << 30)
                if pack.features is None:
                    pytest.skip("this version of transformers takes no features")
                pack.losses(model, made[0])
                model.base_model.get_image_features = None  # would be called for nothing
            model.zero_grad()
            losses = [pack.losses(model, batch) for batch in made]
            torch.cat(losses).sum().backward()
            results.append((torch.cat(losses), gradients(model)))
        assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
        assert_equal(results[1][1], results[0][1])
        pack.features = None
        del model.base_model.get_image_features


@pytest.mark.parametrize("kind", ["qwen2_vl", "llava"])
def test_adapters_are_merged(kind, tiny_model, eight_file, tmp_path, finetune):
    """The folder is a plain model that has learnt; only matrices of the language model's layers have changed, by as many dimensions as asked for."""
    pytest.importorskip("peft")
    flags = ["--input", eight_file, "--model", tiny_model(kind), "--epochs", 40, "--lr", "5e-2", "--batch-size", 8, "--micro-batch", 8, "--lora", 4, "--save-steps", 20]
    finetune(*flags, "--output", tmp_path / "m")
    before, after = weights(tiny_model(kind)), weights(tmp_path / "m")
    assert before.keys() == after.keys() and losses(tmp_path / "m")[-1] < losses(tmp_path / "m")[0] - 0.2
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and all("layers" in name and "vis" not in name for name in changed)
    assert max(int(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3)) for name in changed) == 4
    finetune("--input", eight_file, "--model", tmp_path / "m", "--output", tmp_path / "n", "--lr", "1e-9", "--batch-size", 8)
    assert losses(tmp_path / "n")[0] == pytest.approx(losses(tmp_path / "m")[-1], abs=0.05), "what was merged is what was trained"


def test_recomputed_layers(tiny_model, stage):
    module = stage("04_finetune")
    shares = {}
    for share in (0.0, 0.5, 1.0):
        args = argparse.Namespace(lora=0, freeze=None, recompute=share, trust_remote_code=False)
        model = module.prepare_model(args, str(tiny_model("qwen2_vl")), "cpu", "sdpa", False)
        layers = [layer for layer in model.modules() if hasattr(layer, "gradient_checkpointing") and hasattr(layer, "self_attn")]
        shares[share] = sum(layer.gradient_checkpointing for layer in layers) / len(layers)
    assert shares == {0.0: 0.0, 0.5: 0.5, 1.0: 1.0}


def test_recomputing_changes_nothing(tiny_model, mixed_file, tmp_path, finetune):
    logs = []
    for share in (0, 0.5, 1):
        finetune("--input", mixed_file, "--model", tiny_model("qwen2_vl"), "--output", tmp_path / f"{share}", "--lr", "1e-3", "--batch-size", 4, "--recompute", share)
        logs.append(losses(tmp_path / f"{share}"))
    assert logs[0] == pytest.approx(logs[1], rel=1e-5) and logs[0] == pytest.approx(logs[2], rel=1e-5)


def test_saved_folder_has_the_processors_files(tiny_model, eight_file, tmp_path, finetune):
    finetune("--input", eight_file, "--output", tmp_path / "m", "--model", tiny_model("qwen2_vl"), "--batch-size", 4)
    for name in ("tokenizer.json", "preprocessor_config.json", "processor_config.json", "chat_template.jinja"):
        assert (tmp_path / "m" / name).read_bytes() == (tiny_model("qwen2_vl") / name).read_bytes()
    assert json.loads((tmp_path / "m" / "training.json").read_text())["rows"] == 8


def test_rows_that_cannot_be_used_are_left_out(tiny_model, pictures, tmp_path, stage):
    """A picture that cannot be read, or is a strip that the processor refuses, a reply that is too long, also of the row whose prompt is the question's,
    the model's own placeholders in texts: the others are learnt."""
    module, spec = stage("04_finetune"), str(tiny_model("qwen2_vl"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    Image.new("RGB", (600, 2)).save(tmp_path / "strip.png")
    rows = [row("a", k, pictures[:1], "Q?", reply) for k, reply in enumerate(["long " * 500, "one", "two"])] + [row("b", 0, [str(broken)], "Q?", "x"), row("c", 0, [], "Q?", "y " * 1200)]
    rows += [row("d", 0, [str(tmp_path / "strip.png")], "Q?", "x"), row("a", 3, pictures[:1], "Q?", "a <|image_pad|>"), row("e", 0, [], "A <|video_pad|>?", "x")]
    training = module.TrainingRows(write_rows(tmp_path / "rows.jsonl", rows))
    processor = common.load_processor(spec)
    for packed in (True, False):
        batch, left_out = module.MicroBatches(training, module.deal(training, list(range(len(rows))), 9, 1)[0], processor, SETTINGS, packed)[0]
        assert left_out == 6 and processor.tokenizer.decode(batch.targets[batch.targets != batches.IGNORE]).replace("<eos>", " ").split() in (["one", "two"], ["two", "one"])
    assert module.MicroBatches(training, [[number for number in range(len(rows)) if training[number]["id"] == "b"]], processor, SETTINGS, True)[0] == (None, 1)
