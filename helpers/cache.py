"""The course's cache folder, and whether the model in it is whole.

A manifest beside the model's files holds their SHA-256 hashes, and their sizes and times: while those are
unchanged, a load need not hash 540 MB. `helpers/weights.py` fills the folder.
"""

import hashlib
import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NAME = "smollm2-135m"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # what it is made from
WEIGHTS_SHA256 = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"  # of model.safetensors


class WeightsError(RuntimeError):
    """The weights cannot be had, with one sentence that says what to do."""


@dataclass(frozen=True)
class CacheState:
    """What `course.py doctor` asks. size: bytes. hash: of the weights. problem: a sentence, or None."""

    ready: bool
    path: str
    size: int = 0
    hash: str | None = None
    problem: str | None = None


def cache_dir() -> Path:
    """Where the course keeps what it made: COURSE_CACHE, or a folder in the user's cache folder."""
    if own := os.environ.get("COURSE_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "safety-neurons-course"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, hashes: dict[str, str]) -> None:
    """Hashes, sizes and times of a model's files, as `manifest.json` in their folder."""
    files = {}
    for name, sha256 in hashes.items():
        stat = (folder / name).stat()
        files[name] = {"sha256": sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    new = folder / f"manifest.{os.getpid()}.new"
    new.write_text(json.dumps({"gguf": GGUF_SHA256, "files": files}, indent=1), encoding="utf-8")
    new.replace(folder / "manifest.json")


def hashes_of(folder: Path, verify: bool = False) -> dict[str, str]:
    """The hash of each file of a whole model. Raises WeightsError if it is not whole."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files, source = manifest["files"], manifest["gguf"]
    except FileNotFoundError:
        raise WeightsError("The model is not prepared yet: run `python -m helpers.models`.") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise WeightsError("The model's manifest cannot be read: run `python -m helpers.models`.") from None
    if source != GGUF_SHA256:
        raise WeightsError("The model in the cache is of another version: run `python -m helpers.models`.")
    moved = False
    for name, entry in files.items():
        path = folder / name
        try:
            stat = path.stat()
            same = (stat.st_size, stat.st_mtime_ns) == (entry["size"], entry["mtime_ns"])
            whole = same and not verify or sha256_of(path) == entry["sha256"]
        except (OSError, KeyError, TypeError):
            whole = same = False
        if not whole:
            raise WeightsError(f"The model's {name} is missing or damaged: run `python -m helpers.models`.")
        moved = moved or not same
    hashes = {name: entry["sha256"] for name, entry in files.items()}
    if moved:  # a copied folder: whole, with other times. Note them, if we may write here.
        with suppress(OSError):
            write_manifest(folder, hashes)
    return hashes


def cache_state(verify: bool = False) -> CacheState:
    """Whether the model is ready. verify=True hashes every byte (a second or two)."""
    folder = cache_dir() / NAME
    try:
        hashes = hashes_of(folder, verify)
    except WeightsError as error:
        return CacheState(False, str(folder), problem=str(error))
    weights, problem = hashes["model.safetensors"], None
    if weights != WEIGHTS_SHA256:
        problem = (
            "The converted weights differ from the tested ones, so figures can differ a little: install the "
            f"versions of constraints.txt, delete {folder} and run `python -m helpers.models`."
        )
    size = sum((folder / name).stat().st_size for name in hashes)
    return CacheState(True, str(folder), size, weights, problem)
