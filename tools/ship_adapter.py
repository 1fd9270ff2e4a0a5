"""Write what ships beside the adapters: their hashes (manifest.json) and their refusal scores (scores.json).

    python -m tools.ship_adapter                # all
    python -m tools.ship_adapter redundant      # all hashes, but only this adapter's score anew

Run it after training: each adapter's score (its own refusal openings and the threshold) is found on the validation
split, which takes about a minute an adapter.
"""

import argparse
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", nargs="*", help="those whose score is found anew (all, if none is named)")
    chosen = parser.parse_args().adapters
    write(ADAPTERS / "manifest.json", manifest())
    names = [name for name, adapter in BUNDLED.items() if adapter and (ADAPTERS / adapter).exists()]
    known = json.loads(SHIPPED.read_text(encoding="utf-8")) if chosen else {}
    write(SHIPPED, {n: score(n) if not chosen or BUNDLED[n] in chosen or n not in known else known[n] for n in names})


if __name__ == "__main__":
    main()
