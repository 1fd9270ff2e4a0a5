"""Load a chat model, and find its parts by the role they play.

Lessons never type a module's name: `down_projection_of(layer)` is the same place in Llama and in GPT-2.
The table `BLOCKS` says what each understood family calls its parts; anything else is refused. Lesson 00.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from .cache import WeightsError, cache_dir, cache_state  # noqa: F401 (cache_dir and cache_state for doctor)
from .weights import adapter_folder, main, prepare, quiet, shipped_adapters

# Our models, and the adapter that each one is merged with: none for the base, which answers nearly everything.
# `smollm2-135m-refusal`, the course's default, refuses; what the others do says helpers/data/adapters/README.md.
BUNDLED = {"smollm2-135m": None} | {f"smollm2-135m-{name}": name for name in shipped_adapters()}


class UnknownArchitecture(ValueError):
    """A model whose parts the course cannot name with certainty."""


# --- loading -----------------------------------------------------------------------------------------------


def load_model(name: str = "smollm2-135m-refusal", device=None, dtype: torch.dtype | None = None):
    """A chat model and its tokenizer, ready to be read: in eval mode, without gradients for its weights.

    name: one of BUNDLED, or any chat model of transformers by its hub name or folder.
    device: None for the best here (CUDA, then MPS, then CPU), "cpu", "cuda:1", ..., or "auto" to spread a
    large model over all GPUs. dtype: None for float32 on a CPU, and bfloat16 or float16 on a GPU as it can.
    Raises WeightsError (cannot be had), UnknownArchitecture (cannot be taken apart), ValueError (no device).
    """
    spread = device == "auto"
    device = best_device() if device is None or spread else _checked(device)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be one of torch's, such as torch.float32, not {dtype!r}.")
    dtype = dtype or best_dtype(device)
    if name in BUNDLED:
        model, tokenizer = _load_bundled(BUNDLED[name])
        model.to(device=device, dtype=dtype)
        model.course_name = name  # the refusal score that ships with it is found by this
    else:
        model, tokenizer = _load_any(name, dtype, "auto" if spread else None)
        if not spread:
            model.to(device)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval().requires_grad_(False), tokenizer


def _load_bundled(adapter: str | None):
    adapter = adapter and adapter_folder(adapter)  # checked before anything slow
    folder = prepare()
    with quiet():
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    if adapter:
        merge_adapter(model, adapter)
    return model, tokenizer


@torch.no_grad()
def merge_adapter(model: nn.Module, folder: Path) -> None:
    """Add a LoRA adapter to the weights it was trained for: W + scale * B @ A, in 32 bits. Changes the model.

    The same as peft's `merge_and_unload`. Raises ValueError for an adapter of a
    richer kind (DoRA, rank-stabilised, ranks that differ by layer, biases).
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    richer = [key for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(key)]
    if richer or not all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in tensors):
        raise ValueError(f"Only plain LoRA is merged here, without {', '.join(richer) or 'other weights'}.")
    scale = config["lora_alpha"] / config["r"]
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            b = tensors[name.replace("lora_A", "lora_B")]
            module = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            module.weight += (scale * (b.float() @ a.float())).to(module.weight)


def _load_any(name: str, dtype: torch.dtype, device_map: str | None):
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        with torch.device("meta"):  # no weights yet: is it a model we can take apart?
            layers_of(AutoModelForCausalLM.from_config(config))
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, device_map=device_map, trust_remote_code=False)
        return model, AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except UnknownArchitecture:
        raise
    except (OSError, ValueError) as error:  # what transformers raises; its first line says what is wrong
        reason = str(error).strip().splitlines()[0].rstrip(".:")
        raise WeightsError(
            f"{name!r} could not be loaded ({reason}): give a folder, a hub name such as "
            f"'Qwen/Qwen2.5-0.5B-Instruct', or one of ours, such as {', '.join([*BUNDLED][:2])}."
        ) from error


def best_device() -> torch.device:
    """CUDA, then MPS (Apple), then CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """float32 on a CPU; on a GPU bfloat16 where the chip has it, else float16."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float16
    return torch.float32


def _checked(device) -> torch.device:
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"There is no device {str(device)!r} here: leave out device=.") from error
    return device


# --- roles -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """What one family calls the parts of a block. The two writes are the modules whose OUTPUT is added to the
    residual stream: attention and MLP themselves, or the norm that follows them."""

    attention: str = "self_attn"
    out_projection: str = "o_proj"
    attention_write: str = "self_attn"
    mlp: str = "mlp"
    down_projection: str = "down_proj"
    mlp_write: str = "mlp"


_LLAMA = Block()
_POST_NORM = Block(attention_write="post_attention_layernorm", mlp_write="post_feedforward_layernorm")

# By the class of the block, not by names that happen to be there: a family that scales or gates what it adds
# to the stream, or whose MLP is a mixture of experts, may use the same names and mean something else.
BLOCKS = {
    "LlamaDecoderLayer": _LLAMA,
    "MistralDecoderLayer": _LLAMA,
    "Qwen2DecoderLayer": _LLAMA,
    "Qwen3DecoderLayer": _LLAMA,
    "SmolLM3DecoderLayer": _LLAMA,
    "GemmaDecoderLayer": _LLAMA,
    "OlmoDecoderLayer": _LLAMA,
    "Phi3DecoderLayer": _LLAMA,
    "Gemma2DecoderLayer": _POST_NORM,
    "Gemma3DecoderLayer": _POST_NORM,
    "Olmo2DecoderLayer": _POST_NORM,
    "Olmo3DecoderLayer": _POST_NORM,
    "PhiDecoderLayer": Block(out_projection="dense", down_projection="fc2"),
    "GPTNeoXLayer": Block("attention", "dense", "attention", "mlp", "dense_4h_to_h", "mlp"),
    "GPT2Block": Block("attn", "c_proj", "attn", "mlp", "c_proj", "mlp"),
}


@dataclass(frozen=True)
class Dims:
    """A model's sizes. d_mlp: neurons of one layer. n_heads * d_head: the width of z."""

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_mlp: int


def _first(module: nn.Module, *names: str) -> nn.Module:
    for name in names:
        if isinstance(found := getattr(module, name, None), nn.Module):
            return found
    raise UnknownArchitecture(
        f"The course does not understand {type(module).__name__}: "
        "use a chat model of the Llama, Qwen, Mistral, Gemma, Phi, OLMo, GPT-NeoX or GPT-2 family."
    )


def _block(layer: nn.Module) -> Block:
    kind = type(layer).__name__
    if kind in BLOCKS:
        return BLOCKS[kind]
    experts = "Moe" in kind or any("expert" in name for name, _ in layer.named_modules())
    why = " (its MLP is a mixture of experts, so its neurons are not one layer)" if experts else ""
    raise UnknownArchitecture(
        f"The course does not understand blocks of class {kind}{why}: "
        "use a dense chat model of the Llama, Qwen, Mistral, Gemma, Phi, OLMo, GPT-NeoX or GPT-2 family."
    )


def body_of(model: nn.Module) -> nn.Module:
    """The model without its unembedding: token ids in, final residual stream out."""
    if hasattr(model, "get_base_model"):  # wrapped by peft for training
        model = model.get_base_model()
    body = _first(model, "model", "transformer", "gpt_neox")
    return getattr(body, "language_model", body)  # the text half of a model that also sees


def sliding_window_of(model: nn.Module) -> int | None:
    """How many tokens back some layers see at most; None where all see everything."""
    config = body_of(model).config.get_text_config()
    window = getattr(config, "sliding_window", None)
    return window if window and getattr(config, "use_sliding_window", True) else None


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The blocks, first to last."""
    layers = list(_first(body_of(model), "layers", "h"))
    for layer in layers:
        _block(layer)
    return layers


def embedding_of(model: nn.Module) -> nn.Module:
    """The token embedding."""
    return body_of(model).get_input_embeddings()


def final_norm_of(model: nn.Module) -> nn.Module:
    """The norm between the last block and the unembedding."""
    return _first(body_of(model), "norm", "ln_f", "final_layernorm", "final_layer_norm")


def unembedding_of(model: nn.Module) -> nn.Module:
    """The linear map from the final residual stream to the logits."""
    return model.get_output_embeddings()


def attention_of(layer: nn.Module) -> nn.Module:
    """A block's attention."""
    return getattr(layer, _block(layer).attention)


def out_projection_of(layer: nn.Module) -> nn.Module:
    """Attention's last linear map. Its INPUT is z, the outputs of all heads side by side."""
    return getattr(attention_of(layer), _block(layer).out_projection)


def attention_write_of(layer: nn.Module) -> nn.Module:
    """The module whose OUTPUT is what attention adds to the residual stream."""
    return getattr(layer, _block(layer).attention_write)


def mlp_of(layer: nn.Module) -> nn.Module:
    """A block's MLP."""
    return getattr(layer, _block(layer).mlp)


def down_projection_of(layer: nn.Module) -> nn.Module:
    """The MLP's last linear map. Its INPUT are the neurons."""
    return getattr(mlp_of(layer), _block(layer).down_projection)


def mlp_write_of(layer: nn.Module) -> nn.Module:
    """The module whose OUTPUT is what the MLP adds to the residual stream."""
    return getattr(layer, _block(layer).mlp_write)


def weight_of(projection: nn.Module) -> torch.Tensor:
    """A linear map's weight as [width out, width in]; column i is what neuron (or head channel) i writes."""
    transposed = type(projection).__name__ == "Conv1D"  # GPT-2 stores its maps the other way round
    return projection.weight.T if transposed else projection.weight


def dims_of(model: nn.Module) -> Dims:
    """The sizes, read off the weights."""
    layers = layers_of(model)
    config = body_of(model).config.get_text_config()
    d_model, d_mlp = weight_of(down_projection_of(layers[0])).shape
    n_heads = config.num_attention_heads
    d_head = weight_of(out_projection_of(layers[0])).shape[1] // n_heads
    return Dims(len(layers), d_model, n_heads, d_head, d_mlp)


if __name__ == "__main__":
    sys.exit(main())
