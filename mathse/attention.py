"""Replace the attention of a model's language part: rows that decode (generate/), packed rows (train/)."""


def set_text_attention(model, name: str) -> None:
    """Let the language part, not the vision tower, attend by this entry of transformers' table of
    attentions.
    """
    text = model.config.get_text_config()
    part = next((part for part in model.config.sub_configs if getattr(model.config, part) is text), "")
    model.set_attn_implementation({part: name})
