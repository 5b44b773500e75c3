"""docs/FULL_SIZE.md: its tables are what docs/full_size.py computes, its shapes are the models', its commands are ones that exist."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "FULL_SIZE.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture(scope="module")
def full_size():
    spec = importlib.util.spec_from_file_location("full_size", ROOT / "docs" / "full_size.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["full_size"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_the_scripts(full_size):
    tables = re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
    computed = [table + "\n" for table in full_size.tables()]
    assert [table for table in computed if table not in tables] == []


def test_the_shapes_are_those_of_the_models(full_size):
    """Parameters of models built without weights."""
    import torch
    import transformers as t

    text = dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, vocab_size=92553)
    vision = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=[448, 448], patch_size=[14, 14])
    qwen = dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, vocab_size=152064)
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}
    for model, config in (
        (full_size.QWEN, t.Qwen2VLConfig(text_config=qwen | rope, vision_config=dict(depth=32, embed_dim=1280, hidden_size=3584, mlp_ratio=4), tie_word_embeddings=False)),
        (full_size.INTERNVL, t.InternVLConfig(text_config=t.LlamaConfig(**text), vision_config=vision, tie_word_embeddings=False)),
    ):
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in t.AutoModelForImageTextToText.from_config(config).parameters())
        assert model.parameters == pytest.approx(count, rel=0.002)


def test_what_a_layer_saves(full_size):
    """Measured on layers of an eighth of the width, and as many heads: bytes of the tensors that bf16 and SDPA keep for the backward pass."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaDecoderLayer, LlamaRotaryEmbedding
    from transformers.models.qwen2.modeling_qwen2 import Qwen2Config, Qwen2DecoderLayer, Qwen2RotaryEmbedding

    for model, heads, Config, Layer, Rotary in (
        (full_size.QWEN, 28, Qwen2Config, Qwen2DecoderLayer, Qwen2RotaryEmbedding),
        (full_size.INTERNVL, 32, LlamaConfig, LlamaDecoderLayer, LlamaRotaryEmbedding),
    ):
        sizes = dict(hidden_size=model.hidden // 8, intermediate_size=model.inner // 8, num_attention_heads=heads, num_key_value_heads=model.kv_heads, num_hidden_layers=1)
        config = Config(**sizes, vocab_size=8, attn_implementation="sdpa")
        layer, states = Layer(config, 0).bfloat16().train(), torch.randn(1, 64, model.hidden // 8, dtype=torch.bfloat16, requires_grad=True)
        rotary = Rotary(config)(states, torch.arange(64)[None])
        ours = {tensor.untyped_storage().data_ptr() for tensor in (*layer.parameters(), *rotary)}
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in ours:
                kept[storage.data_ptr()] = storage.nbytes(), tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            layer(states, position_embeddings=rotary, attention_mask=None)
        assert model.saved == pytest.approx(8 * sum(size for size, _ in kept.values()) / 64, rel=0.02)


@pytest.mark.parametrize("command", [command for command in COMMANDS if "run_rounds.sh" in command])
def test_every_run_can_be_planned(command):
    common = [line for line in COMMANDS if line.startswith("export ") and "LAUNCH" not in line]
    done = subprocess.run(["bash", "-c", "\n".join([*common, command])], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"DRY_RUN": "1", "PYTHON": sys.executable})
    assert done.returncode == 0 and "about 195886 model calls" in done.stdout, done.stderr
    assert done.stdout.count("04_finetune.py") == 5 and done.stdout.count(re.search('FINETUNE="(.*?)"', command)[1]) == 5


@pytest.mark.parametrize("command", [command for command in COMMANDS if re.search(r"\b0\d_\w+\.py", command)])
def test_every_flag_exists(command):
    words = shlex.split(command)
    script = next(word for word in words if word.endswith(".py"))
    known = (ROOT / script).read_text() + (ROOT / "common.py").read_text()
    assert [word for word in words[words.index(script) :] if word.startswith("--") and f'"{word}"' not in known] == []
