"""A loaded model made ready for training: what is frozen or adapted, which layers are recomputed."""

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from mathse.records import fail

# Dense bf16 FLOP/s by a part of a GPU's name, for mfu.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def set_up_model(model, freeze: str | None, lora: int, recompute: float):
    """The model, or with `lora` > 0 the model with adapters of this rank on its language part's layers.

    `freeze`: "vision" trains the language part alone. `recompute`: share of layers to checkpoint, 0 to 1.
    """
    text = model.train().get_decoder()
    if freeze == "vision":
        freeze_vision(model)
    if recompute > 0:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for index, layer in enumerate(checkpointed_layers(model)):  # spread evenly
            layer.gradient_checkpointing = int((index + 1) * recompute) > int(index * recompute)
    if lora:
        from peft import LoraConfig, get_peft_model

        inside = {id(module) for module in text.modules() if isinstance(module, torch.nn.Linear)}
        names = [name for name, module in model.named_modules() if id(module) in inside]
        model = get_peft_model(model, LoraConfig(r=lora, lora_alpha=2 * lora, target_modules=names))
    return model


def freeze_vision(model) -> None:
    parts = model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()
    trained = {id(parameter) for part in parts for parameter in part.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad = id(parameter) in trained
    if all(parameter.requires_grad for parameter in model.parameters()):
        problem = "this model's vision tower cannot be told from its language model"
        fail(f"--freeze vision: {problem}; leave the flag out")


def checkpointed_layers(model) -> list:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def flops_per_token(model) -> int:
    """Floating-point operations a token, forward and backward: 6 for each weight of the language part."""
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    layers = (weight for weight in model.get_decoder().parameters() if weight is not embeddings)
    return 6 * (head.numel() + sum(weight.numel() for weight in layers if weight is not head))


def peak_flops() -> float | None:
    """This process's GPU's bf16 FLOP/s, None where it is not known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for part, peak in PEAKS.items() if part in name), None)
