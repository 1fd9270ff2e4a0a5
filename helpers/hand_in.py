"""What a detective hands in: a small JSON file, read with suspicion. Taught in lesson 08.

It holds who, which box, which kind, which places, how many passes; and the *signature* of the box, so that findings
of one box cannot be handed in for another. The checksum catches a slip of the editor or a broken upload. It is no seal: who
wants to can compute it anew, and passes are what the learner's own machine counted.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .glassbox import KINDS, STAGES, Place, mystery
from .glassbox_score import places_of
from .models import down_projection_of, layers_of, weight_of

FORMAT = "safety-neurons capstone 1"
LARGEST = 200_000  # characters; every place of a box, listed in every stage, needs fewer
NAME = re.compile(r"[^\W_][\w .'-]{0,39}")  # begins with a letter or digit: a table of names then opens safely anywhere
HIGHEST_SEED = 2**53  # what every reader of JSON can hold


class HandInError(ValueError):
    """A hand-in that cannot be accepted; its text says why, and what to do."""


@dataclass(frozen=True)
class HandIn:
    """Findings about a mystery box. stages: {stage: places}; passes: forward passes used; box: the box's signature.

    Raises HandInError, in a sentence, for anything that is not as it should be.
    """

    team: str
    seed: int
    kind: str
    stages: Mapping[str, tuple[Place, ...]]
    passes: float
    box: str

    def __post_init__(self):
        if not isinstance(self.team, str) or not NAME.fullmatch(self.team):
            raise HandInError(
                f"{str(self.team)[:40]!r} is no name for a team: take up to 40 letters, digits, spaces, dots, hyphens or "
                "apostrophes, a letter or digit first."
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or abs(self.seed) > HIGHEST_SEED:
            raise HandInError(f"The seed is the whole number of your box; {str(self.seed)[:40]!r} is none.")
        if self.kind not in KINDS:
            raise HandInError(f"{str(self.kind)[:40]!r} is no kind of box: choose one of {', '.join(KINDS)}.")
        if isinstance(self.passes, bool) or not isinstance(self.passes, int | float):
            raise HandInError("passes is the number of forward passes that you used: give case.budget.used.")
        if not math.isfinite(self.passes) or self.passes < 0:
            raise HandInError(f"{self.passes} passes cannot be: give case.budget.used.")
        if not isinstance(self.stages, Mapping) or set(self.stages) != set(STAGES):
            raise HandInError(f"stages maps each of {', '.join(STAGES)} to a list of places; an empty list will do.")
        try:
            found = {stage: tuple(places_of(self.stages[stage], stage)) for stage in STAGES}
        except (TypeError, ValueError) as error:
            raise HandInError(f"A stage of the hand-in is wrong. {error}") from None
        if self.box != signature_of(self.seed):
            raise HandInError(
                f"These findings are not of the box with the seed {self.seed}: the signatures differ. Hand in with the case "
                "that you investigated; each seed has a box of its own."
            )
        object.__setattr__(self, "stages", found)

    def to_json(self) -> str:
        """The text of the file."""
        data = {
            "format": FORMAT, "team": self.team, "seed": self.seed, "kind": self.kind,
            "stages": {s: [list(p) for p in self.stages[s]] for s in STAGES},
            "passes": round(float(self.passes), 1), "box": self.box,
        }  # fmt: skip
        return json.dumps(data | {"checksum": _checksum(data)}, ensure_ascii=False, indent=1)

    def write(self, folder: str | Path = "hand_ins") -> Path:
        """Write it as `team-seed.json`, an earlier one of the same team and box overwritten; returns where it is."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^\w-]+", "_", self.team)
        path = folder / f"{name}-{self.seed}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(self.to_json(), encoding="utf-8")
        os.replace(temporary, path)
        return path


def _checksum(data: Mapping) -> str:
    text = json.dumps(data, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=64)
def signature_of(seed: int) -> str:
    """The signature of a seed's box."""
    return signature(mystery(seed)[0])


def signature(model) -> str:
    """16 hexadecimal digits that tell a mystery box from the others: where in each layer the loudest neurons ended up.

    Not a hash of the weights themselves, whose last bits differ from one processor to the next.
    """
    loudest = []
    for layer in layers_of(model):
        down = weight_of(down_projection_of(layer)).double()  # [d_model, d_mlp]
        reads = [part.weight.double() for part in (layer.mlp.gate_proj, layer.mlp.up_proj)]  # [d_mlp, d_model]
        loudest += [int(down.norm(dim=0).argmax()), *(int(x.norm(dim=1).argmax()) for x in reads)]
    return hashlib.sha256(str(loudest).encode()).hexdigest()[:16]


def hand_in_from_json(text: str) -> HandIn:
    """The hand-in that a text holds. Raises HandInError for a text that is malformed, altered, or of another box."""
    if len(text) > LARGEST:
        raise HandInError(
            f"This file has {len(text):,} characters, and no hand-in is that long: write it with .write()."
        )
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise HandInError("This is no hand-in: the file holds no JSON. Write it with hand_in.write().") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise HandInError(f"This is no hand-in of the format {FORMAT!r}: write it with hand_in.write().")
    fields = {"format", "team", "seed", "kind", "stages", "passes", "box", "checksum"}
    if set(data) != fields:
        raise HandInError(f"A hand-in has the fields {', '.join(sorted(fields))}: write it with hand_in.write().")
    given = data.pop("checksum")
    if given != _checksum(data):
        raise HandInError("The checksum does not fit: the file was changed after it was written. Hand in the original.")
    return HandIn(**{name: data[name] for name in ("team", "seed", "kind", "stages", "passes", "box")})


def _no_constant(name: str):
    raise ValueError(f"{name} is no number of a hand-in")


def read_hand_in(path: str | Path) -> HandIn:
    """The hand-in in a file. Raises HandInError as `hand_in_from_json`, and for a file that is no text."""
    path = Path(path)
    try:
        if path.stat().st_size > 4 * LARGEST:
            raise HandInError("This file is too large to be a hand-in: write it with hand_in.write().")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise HandInError("This file holds no text: write it with hand_in.write().") from None
    except OSError as error:
        raise HandInError(f"This file cannot be read ({error.strerror}).") from None
    return hand_in_from_json(text)
