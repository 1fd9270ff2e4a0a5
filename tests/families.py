"""Tiny random models of every family that the course understands, for tests of roles and hooks."""

import torch
import transformers as T

SMALL = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.2,
    pad_token_id=0,
)

CONFIGS = {
    "llama": lambda: T.LlamaConfig(**SMALL),
    "mistral": lambda: T.MistralConfig(**SMALL),
    "qwen2": lambda: T.Qwen2Config(**SMALL),
    "qwen3": lambda: T.Qwen3Config(**SMALL, head_dim=8),
    "gemma2": lambda: T.Gemma2Config(**SMALL, head_dim=8),
    "gemma3": lambda: T.Gemma3TextConfig(**SMALL, head_dim=8),
    "phi": lambda: T.PhiConfig(**SMALL),
    "phi3": lambda: T.Phi3Config(**SMALL),
    "olmo2": lambda: T.Olmo2Config(**SMALL),
    "gpt_neox": lambda: T.GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
    "gpt2": lambda: T.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, n_inner=48, initializer_range=0.2
    ),
}


def tiny(family: str):
    """A tiny random model of one family, in eval mode."""
    torch.manual_seed(0)
    return T.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval().requires_grad_(False)


class CharTokenizer:
    """As little of a tokenizer as the helpers need: a template, and one token for each character."""

    chat_template = "tiny"
    pad_token_id = 0

    def apply_chat_template(self, messages, **_):
        return "^" + "".join(m["content"] for m in messages) + "$"

    def __call__(self, texts, **_):
        return {"input_ids": [[1 + ord(c) % 60 for c in text] for text in texts]}
