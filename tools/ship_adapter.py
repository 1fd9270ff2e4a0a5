"""Write what ships beside the adapters: their hashes (manifest.json) and their refusal scores (scores.json).

    python -m tools.ship_adapter

Run it after training: each adapter's score (its own refusal openings and the threshold) is found on the validation
split, which takes about a minute an adapter.
"""

import hashlib
import json
from pathlib import Path

from helpers.models import BUNDLED, load_model
from helpers.prompts import load_first_person, load_pairs
from helpers.refusal import SHIPPED, find_refusal_score

ADAPTERS = SHIPPED.parent


def manifest() -> dict[str, dict[str, str]]:
    """SHA-256 of every file of every adapter."""
    folders = [folder for folder in sorted(ADAPTERS.iterdir()) if folder.is_dir()]
    return {
        folder.name: {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}
        for folder in folders
    }


def score(name: str) -> dict:
    """One model's openings, as token ids and as text, and its threshold."""
    model, tokenizer = load_model(name)
    # Free requests too: the more answers, the fewer of the model's openings are missed.
    pairs = [pair for phrasing in ("seen", "free") for pair in load_pairs("validation", phrasing)]
    harmless = [p.harmless for p in pairs] + load_first_person("validation")
    found = find_refusal_score(model, tokenizer, [p.harmful for p in pairs], harmless)
    return {
        "threshold": found.threshold,
        "openings": [list(opening) for opening in found.openings],
        "as_text": [tokenizer.decode(opening) for opening in found.openings],
    }


def write(path: Path, content: dict) -> None:
    """JSON that reads well in a diff."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Hashes first: the models are loaded by them."""
    write(ADAPTERS / "manifest.json", manifest())
    names = [name for name, adapter in BUNDLED.items() if adapter and (ADAPTERS / adapter).exists()]
    write(SHIPPED, {name: score(name) for name in names})


if __name__ == "__main__":
    main()
