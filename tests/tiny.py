"""Tiny random models of several architectures, made from configs, with a byte-level tokenizer: what the
tests load.
"""

import argparse
import json
from pathlib import Path

SPECIAL = [
    "<pad>", "<eos>", "<user>", "<reply>", "<image>", "<video>", "<fake_token_around_image>", "<global-img>",
    "<img>", "</img>", "<IMG_CONTEXT>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<end_of_utterance>",
]  # fmt: skip
IDS = {token: index for index, token in enumerate(SPECIAL)}
LAYERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TEXT = LAYERS | {
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "vocab_size": len(SPECIAL) + 256, "bos_token_id": None, "eos_token_id": IDS["<eos>"],
    "pad_token_id": IDS["<pad>"],
}  # fmt: skip
VISION = LAYERS | {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
SQUARE = {"height": 32, "width": 32}
QWEN = {
    "mark": "<|vision_start|><|image_pad|><|vision_end|>",
    "tokens": {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    "text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
    "vision": {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 8},
    "config": {
        "image_token_id": IDS["<|image_pad|>"], "video_token_id": IDS["<|video_pad|>"],
        "vision_start_token_id": IDS["<|vision_start|>"], "vision_end_token_id": IDS["<|vision_end|>"],
    },
    "images": ("qwen2_vl.Qwen2VL", {"patch_size": 8, "size": {"shortest_edge": 1024, "longest_edge": 4096}}),
    "processor": {},
}  # fmt: skip
LLAVA = {
    "name": "Llava",
    "mark": "<image>",
    "tokens": {"image_token": "<image>"},
    "text": {"model_type": "llama"},
    "vision": VISION | {"model_type": "clip_vision_model", "num_hidden_layers": 2},
    "config": {"image_token_index": IDS["<image>"], "vision_feature_layer": -1},
    "images": ("clip.CLIP", {"size": {"shortest_edge": 32}, "crop_size": SQUARE}),
    "processor": {
        "patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1
    },
}  # fmt: skip
PINPOINTS = [[32, 32], [32, 64], [64, 32]]
KINDS = {  # name: of its classes; mark: of an image in a prompt; the rest: settings of its parts
    "qwen2_vl": QWEN | {
        "name": "Qwen2VL", "vision": QWEN["vision"] | {"depth": 1, "embed_dim": 32, "mlp_ratio": 2}
    },
    "qwen2_5_vl": QWEN | {
        "name": "Qwen2_5_VL",
        "vision": QWEN["vision"] | {
            "intermediate_size": 48, "out_hidden_size": 32, "window_size": 32, "fullatt_block_indexes": [1]
        },
    },
    "qwen3_vl": QWEN | {
        "name": "Qwen3VL",
        "text": QWEN["text"] | {"head_dim": 8},
        "vision": QWEN["vision"] | {
            "intermediate_size": 48, "out_hidden_size": 32, "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
    },
    "internvl": {
        "name": "InternVL",
        "mark": "<IMG_CONTEXT>",
        "tokens": {
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        "text": {"model_type": "qwen2"},
        "vision": VISION | {"image_size": [32, 32], "patch_size": [8, 8]},
        "config": {"image_token_id": IDS["<IMG_CONTEXT>"], "image_seq_length": 4, "downsample_ratio": 0.5},
        "images": ("got_ocr2.GotOcr2", {"size": SQUARE, "crop_to_patches": False}),
        "processor": {"image_seq_length": 4},
    },
    "idefics3": {
        "name": "Idefics3",
        "mark": "<image>",
        "tokens": None,
        "text": {"model_type": "llama"},
        "vision": VISION,
        "config": {"image_token_id": IDS["<image>"], "scale_factor": 2, "pad_token_id": IDS["<pad>"]},
        "images": (
            "idefics3.Idefics3", {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
        ),
        "processor": {"image_seq_len": 4},
    },
    "llava": LLAVA,
    "llava_sliding": LLAVA | {  # its language part forgets what lies too far back
        "text": {"model_type": "mistral", "sliding_window": 32}
    },
    "llava_onevision": {
        "name": "LlavaOnevision",
        "mark": "<image>",
        "tokens": {"image_token": "<image>", "video_token": "<video>"},
        "text": {"model_type": "qwen2"},
        "vision": VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        "config": {
            "image_token_index": IDS["<image>"], "video_token_index": IDS["<video>"],
            "image_grid_pinpoints": PINPOINTS,
        },
        "images": ("llava_onevision.LlavaOnevision", {"size": SQUARE, "image_grid_pinpoints": PINPOINTS}),
        "processor": {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    },
    "gemma3": {  # layers with sliding windows, and image tokens that see those behind them
        "name": "Gemma3",
        "mark": "<img>",
        "tokens": {"boi_token": "<img>", "eoi_token": "</img>", "image_token": "<IMG_CONTEXT>"},
        "text": {
            "head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]
        },
        "vision": VISION,
        "config": {
            "mm_tokens_per_image": 4, "boi_token_index": IDS["<img>"], "eoi_token_index": IDS["</img>"],
            "image_token_index": IDS["<IMG_CONTEXT>"],
        },
        "images": ("gemma3.Gemma3", {"size": SQUARE}),
        "processor": {"image_seq_length": 4},
    },
}  # fmt: skip


def template(mark: str) -> str:
    return (
        "{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<reply>' }}"
        "{% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}"
        + mark
        + "{% else %}{{ p['text'] }}{% endif %}{% endfor %}<eos>{% endfor %}"
        "{% if add_generation_prompt %}<reply>{% endif %}"
    )


def make_tokenizer(**extra):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(SPECIAL + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ends = {"eos_token": "<eos>", "pad_token": "<pad>", "padding_side": "left", "model_max_length": 2048}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends, **extra)


def make_model(kind: str, folder: Path, seed: int = 0) -> Path:
    """A random model of this architecture with its processor in `folder`."""
    import torch
    import transformers

    made = KINDS[kind]
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(**({"extra_special_tokens": made["tokens"]} if made["tokens"] else {}))
    parts = {"text_config": made["text"] | TEXT, "vision_config": made["vision"]}
    config = getattr(transformers, f"{made['name']}Config")(**parts, **made["config"])
    room, name = made["images"][0].split(".")
    images = getattr(getattr(transformers.models, room), f"{name}ImageProcessorPil")(**made["images"][1])
    model = getattr(transformers, f"{made['name']}ForConditionalGeneration")(config)
    tokenizer.chat_template = template(made["mark"])
    return save_model(folder, model, tokenizer, images, f"{made['name']}Processor", made["processor"])


def save_model(folder: Path, model, tokenizer, images, name: str, settings: dict) -> Path:
    """Write the files that AutoProcessor reads, piece by piece: no class that needs torchvision is made."""
    from transformers import GenerationConfig

    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ends)
    for part in (model, tokenizer, images):
        part.save_pretrained(folder)
    settings = {"processor_class": name} | settings
    (Path(folder) / "processor_config.json").write_text(json.dumps(settings))
    return folder


def edit(path: Path, **changes: object) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flags(**changes: object) -> argparse.Namespace:
    """Those of a stage that asks a model; greedy unless changed."""
    values = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": 12, "max_pixels": 10_000}
    values |= {"batch_size": 64, "trust_remote_code": False, "serve": None, "retry_errors": False}
    return argparse.Namespace(**values | changes)


def open_engine(spec: object, **changes: object):
    """A local model as a stage opens it."""
    import common
    from mathse.generate import open_model

    return open_model(str(spec), flags(**changes), common.load)
