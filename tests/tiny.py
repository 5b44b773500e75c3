"""Tiny random models of several architectures, made from configs, with a byte-level tokenizer: what the
tests load.
"""

from pathlib import Path

SPECIAL = [
    "<pad>",
    "<eos>",
    "<user>",
    "<reply>",
    "<image>",
    "<video>",
    "<fake_token_around_image>",
    "<global-img>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<end_of_utterance>",
]
TEXT = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
)
MARKS = {
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "internvl": "<IMG_CONTEXT>",
    "idefics3": "<image>",
    "llava": "<image>",
    "llava_sliding": "<image>",  # its language part forgets what lies too far back
    "llava_onevision": "<image>",
    "gemma3": "<img>",  # layers with sliding windows, and image tokens that see those behind them
}


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
    tokenizer = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(SPECIAL + alphabet)}, merges=[])
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=2048,
        **extra,
    )


def make_model(kind: str, folder: Path, seed: int = 0) -> Path:
    """A random model of this architecture with its processor in `folder`."""
    import torch
    import transformers as t

    torch.manual_seed(seed)
    vocabulary = len(SPECIAL) + 256
    ids = {token: index for index, token in enumerate(SPECIAL)}
    text = TEXT | {
        "vocab_size": vocabulary,
        "bos_token_id": None,
        "eos_token_id": ids["<eos>"],
        "pad_token_id": ids["<pad>"],
    }
    template_text = template(MARKS[kind])
    if kind.startswith("qwen"):
        tokenizer = make_tokenizer(
            extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
        )
        vision = dict(depth=2, hidden_size=32, num_heads=2, patch_size=8)
        vision |= {
            "qwen2_vl": dict(depth=1, embed_dim=32, mlp_ratio=2),
            "qwen2_5_vl": dict(
                intermediate_size=48, out_hidden_size=32, window_size=32, fullatt_block_indexes=[1]
            ),
            "qwen3_vl": dict(
                intermediate_size=48,
                out_hidden_size=32,
                num_position_embeddings=16,
                deepstack_visual_indexes=[0, 1],
            ),
        }[kind]
        settings = dict(
            text_config=text
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
            | ({"head_dim": 8} if kind == "qwen3_vl" else {}),
            vision_config=vision,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
        images = t.models.qwen2_vl.Qwen2VLImageProcessorPil(
            patch_size=8, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
        )
        name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[kind]
        model = getattr(t, f"{name}ForConditionalGeneration")(getattr(t, f"{name}Config")(**settings))
    elif kind == "internvl":
        tokenizer = make_tokenizer(
            extra_special_tokens={
                "start_image_token": "<img>",
                "end_image_token": "</img>",
                "context_image_token": "<IMG_CONTEXT>",
                "video_token": "<video>",
            }
        )
        config = t.InternVLConfig(
            text_config={"model_type": "qwen2"} | text,
            vision_config=dict(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=[32, 32],
                patch_size=[8, 8],
            ),
            image_token_id=ids["<IMG_CONTEXT>"],
            image_seq_length=4,
            downsample_ratio=0.5,
        )
        images = t.models.got_ocr2.GotOcr2ImageProcessorPil(
            size={"height": 32, "width": 32}, crop_to_patches=False
        )
        model = t.InternVLForConditionalGeneration(config)
    elif kind == "idefics3":
        tokenizer = make_tokenizer()
        config = t.Idefics3Config(
            text_config={"model_type": "llama"} | text,
            vision_config=dict(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=32,
                patch_size=8,
            ),
            image_token_id=ids["<image>"],
            scale_factor=2,
            pad_token_id=ids["<pad>"],
        )
        images = t.models.idefics3.Idefics3ImageProcessorPil(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        )
        model = t.Idefics3ForConditionalGeneration(config)
    elif kind in ("llava", "llava_sliding"):
        tokenizer = make_tokenizer(extra_special_tokens={"image_token": "<image>"})
        config = t.LlavaConfig(
            text_config=(
                {"model_type": "llama"}
                if kind == "llava"
                else {"model_type": "mistral", "sliding_window": 32}
            )
            | text,
            vision_config={"model_type": "clip_vision_model"}
            | dict(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=32,
                patch_size=8,
            ),
            image_token_index=ids["<image>"],
            vision_feature_layer=-1,
        )
        images = t.models.clip.CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
        model = t.LlavaForConditionalGeneration(config)
    elif kind == "llava_onevision":
        tokenizer = make_tokenizer(extra_special_tokens={"image_token": "<image>", "video_token": "<video>"})
        config = t.LlavaOnevisionConfig(
            text_config={"model_type": "qwen2"} | text,
            vision_config={"model_type": "siglip_vision_model"}
            | dict(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=32,
                patch_size=8,
                vision_use_head=False,
            ),
            image_token_index=ids["<image>"],
            video_token_index=ids["<video>"],
            image_grid_pinpoints=[[32, 32], [32, 64], [64, 32]],
        )
        images = t.models.llava_onevision.LlavaOnevisionImageProcessorPil(
            size={"height": 32, "width": 32}, image_grid_pinpoints=[[32, 32], [32, 64], [64, 32]]
        )
        model = t.LlavaOnevisionForConditionalGeneration(config)
    elif kind == "gemma3":
        special = {"boi_token": "<img>", "eoi_token": "</img>", "image_token": "<IMG_CONTEXT>"}
        tokenizer = make_tokenizer(extra_special_tokens=special)
        config = t.Gemma3Config(
            text_config=text
            | {"head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
            vision_config=dict(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=32,
                patch_size=8,
            ),
            mm_tokens_per_image=4,
            boi_token_index=ids["<img>"],
            eoi_token_index=ids["</img>"],
            image_token_index=ids["<IMG_CONTEXT>"],
        )
        images = t.models.gemma3.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
        model = t.Gemma3ForConditionalGeneration(config)
    model.generation_config = t.GenerationConfig(eos_token_id=ids["<eos>"], pad_token_id=ids["<pad>"])
    model.save_pretrained(folder)
    save_processor(kind, tokenizer, images, template_text, folder)
    return folder


def save_processor(kind: str, tokenizer, images, template_text: str, folder: Path) -> None:
    """The files that AutoProcessor reads, written piece by piece: no class that needs torchvision is made."""
    import json

    processor, settings = {
        "qwen2_vl": ("Qwen2VLProcessor", {}),
        "qwen2_5_vl": ("Qwen2_5_VLProcessor", {}),
        "qwen3_vl": ("Qwen3VLProcessor", {}),
        "internvl": ("InternVLProcessor", {"image_seq_length": 4}),
        "idefics3": ("Idefics3Processor", {"image_seq_len": 4}),
        "llava": (
            "LlavaProcessor",
            {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        ),
        "llava_sliding": (
            "LlavaProcessor",
            {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        ),
        "gemma3": ("Gemma3Processor", {"image_seq_length": 4}),
        "llava_onevision": (
            "LlavaOnevisionProcessor",
            {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        ),
    }[kind]
    tokenizer.chat_template = template_text
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    (Path(folder) / "processor_config.json").write_text(json.dumps({"processor_class": processor} | settings))
