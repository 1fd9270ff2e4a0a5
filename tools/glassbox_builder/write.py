"""Turns finished boxes into the files that the course ships."""

import hashlib
import json
from pathlib import Path

from safetensors.torch import load, save
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.glassbox_language import language, vocabulary
from helpers.glassbox_truth import seal, truth_from_json, truth_text, truth_to_json

from .assemble import config

TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '<|user|>' + m['content'] + '<|end|>' }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>' + m['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One word, one token; lower case; the chat template leaves a system prompt out."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary())}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # "sorry, i", not "sorry , i"
    out = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<|end|>", unk_token="<unk>", pad_token="<pad>",
        additional_special_tokens=["<|user|>", "<|assistant|>"], padding_side="left", model_max_length=256,
    )  # fmt: skip
    out.chat_template = TEMPLATE
    return out


def shared_files() -> dict[str, bytes]:
    """What all boxes have in common: name → content."""
    keep = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
        "tie_word_embeddings", "rope_parameters", "pad_token_id", "bos_token_id", "eos_token_id",
    )  # fmt: skip
    values = config().to_dict()
    return {"config.json": (json.dumps({k: values[k] for k in keep}, indent=1) + "\n").encode()}


def box_files(name: str, weights, truth) -> dict[str, bytes]:
    """A box's files: weights, and its truth, which for a mystery box is packed so that nobody reads it by chance."""
    text = truth_to_json(truth)
    sealed = name.startswith("mystery")
    key = f"{name}.sealed" if sealed else f"{name}.truth.json"
    content = seal(text) if sealed else text.encode()
    return {f"{name}.safetensors": save(dict(sorted(weights.items())), {"format": "pt"}), key: content + b"\n"}


def alike(name: str, new: bytes, old: bytes) -> bool:
    """Whether two files of a box say the same: equal circuits, and weights within 1% of their matrix's largest.

    A build is the same byte for byte on one machine; another's matrix products end in other last digits, which can
    turn the third digit of a gain.
    """
    if name.endswith(".safetensors"):
        one, two = load(new), load(old)
        return one.keys() == two.keys() and all(
            w.shape == two[key].shape and (w - two[key]).abs().max() <= 0.01 * w.abs().max() for key, w in one.items()
        )
    if name == "config.json":
        return new == old
    return truth_from_json(truth_text(new)) == truth_from_json(truth_text(old))


def write(folder: Path, files: dict[str, bytes]) -> None:
    """The files, the tokenizer, and the manifest of all hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer().save_pretrained(folder / "tokenizer")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    (folder / "manifest.json").write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")


def end_words() -> tuple[str, str]:
    """The first words of a refusal and of a compliant answer."""
    return language()["refusal"][0], language()["compliance"][0]
