"""The capstone: a mystery box for everybody, a hand-in, a score, and a class's table. Taught in lesson 08.

    case = open_case(seed=7)                     the box, with a budget of forward passes that is counted
    hand_in = case.hand_in("team", kind, stages) what was found
    print(grade(hand_in).feedback)               the score, without giving the places away

For instructors, at the command line (`--help` says more):

    python -m helpers.capstone seeds --term 2026-spring --names ada bob --out seeds.csv
    python -m helpers.capstone grade hand_ins --seeds seeds.csv --out table.csv
"""

import argparse
import csv
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from .budget import Budget
from .glassbox import Score, mystery, score
from .hand_in import HandIn, HandInError, read_hand_in, signature

LIMIT = 3000  # passes; one map of lesson 04 costs about half of it
PAR = 1000  # up to so many, the cost earns everything; at LIMIT it earns nothing
WEIGHTS = {"precision": 0.35, "recall": 0.35, "kind": 0.2, "cost": 0.1}


@dataclass(frozen=True)
class Case:
    """A mystery box under investigation. `budget` counts; `close()` takes its hooks off."""

    seed: int
    model: object = field(repr=False)
    tokenizer: object = field(repr=False)
    budget: Budget = field(repr=False)

    def hand_in(self, team: str, kind: str, stages: Mapping[str, Sequence]) -> HandIn:
        """What was found, with the passes used so far and the box's signature. Raises HandInError for what cannot be."""
        return HandIn(team, self.seed, kind, stages, self.budget.used, signature(self.model))

    def close(self) -> None:
        """Stop counting, and take the hooks off."""
        self.budget.close()

    def __enter__(self) -> "Case":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def open_case(seed: int, limit: float | None = LIMIT) -> Case:
    """The mystery box of a seed, as a case. Its truth stays with the grader. limit: None to practise without one."""
    model, tokenizer, _ = mystery(seed)
    return Case(int(seed), model, tokenizer, Budget(model, limit))


@dataclass(frozen=True)
class Grade:
    """precision, recall: the mean over the four stages; kind: 1 or 0; cost: 1 up to PAR passes, 0 at LIMIT; each 0 to 1.

    evaluation: recall of the evaluation neurons. by_stage: the scores behind it all.
    """

    precision: float
    recall: float
    kind: float
    cost: float
    evaluation: float
    by_stage: Mapping[str, Score] = field(repr=False)

    @property
    def total(self) -> float:
        """0 to 1, with WEIGHTS. A right kind counts as far as the evaluation neurons were found, whose cut shows it: one
        guess in four is right anyway. Thrift counts as far as anything was found."""
        worth = {
            "precision": self.precision,
            "recall": self.recall,
            "kind": self.kind * self.evaluation,
            "cost": self.cost * self.recall,
        }
        return sum(WEIGHTS[name] * value for name, value in worth.items())

    @property
    def feedback(self) -> str:
        """The score in words: what was missed, stage by stage, and no places."""
        lines = [
            f"Total {self.total:.2f}: precision {self.precision:.2f}, recall {self.recall:.2f}, "
            f"kind {self.kind:.0f}, cost {self.cost:.2f}."
        ]
        lines += [f"* {stage.replace('_', ' ')}: {_words(one)}" for stage, one in self.by_stage.items()]
        lines.append(
            f"* kind: {'right.' if self.kind else 'another one. What did the cut of the evaluation neurons change?'}"
        )
        return "\n".join(lines)


def _words(one: Score) -> str:
    """What a stage's score says, without its places."""
    if one.recall == 0:
        return "none found."
    if one.recall == 1:
        found = "all found"
    else:
        found = "most found" if one.recall >= 0.75 else "about half found" if one.recall >= 0.4 else "a few found"
    if one.precision == 1:
        wrong = "nothing wrong among them"
    else:
        wrong = "a few wrong ones among them" if one.precision >= 0.75 else "many wrong ones among them"
    decoys = ", some of which are decoys" if one.decoys else ""
    return f"{found}, {wrong}{decoys if one.precision < 1 else ''}."


def grade(hand_in: HandIn) -> Grade:
    """The grade of a hand-in, from the sealed truth of its box. Places of a backup count neither for nor against."""
    if not isinstance(hand_in, HandIn):
        raise TypeError("grade() takes a HandIn: of case.hand_in(...), or of read_hand_in(file).")
    _, _, truth = mystery(hand_in.seed)
    by_stage = score(dict(hand_in.stages), truth)
    return Grade(
        precision=float(np.mean([one.precision for one in by_stage.values()])),
        recall=float(np.mean([one.recall for one in by_stage.values()])),
        kind=float(hand_in.kind == truth.unseal().kind),
        cost=float(np.clip((LIMIT - hand_in.passes) / (LIMIT - PAR), 0, 1)),
        evaluation=by_stage["evaluation_neurons"].recall,
        by_stage=by_stage,
    )


# --- a class ------------------------------------------------------------------------------------------------


def class_seeds(names: Sequence[str] | int, term: str = "") -> dict[str, int]:
    """A seed for everybody, the same whenever and wherever it is asked for; another term gives other ones.

    names: of learners or teams, or how many teams there are. A name's seed does not depend on the others, so that a class
    may grow. Raises ValueError for no names at all, or one that is there twice.
    """
    if isinstance(names, int) and not isinstance(names, bool):
        names = [f"team {i}" for i in range(1, names + 1)]
    names = [str(name).strip() for name in names] if not isinstance(names, str | bool) else []
    if not names or not all(names):
        raise ValueError("Give the names of a class as a list, or how many teams there are, at least 1.")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice!r} is in the list twice: their boxes would be the same. Tell them apart.")
    return {n: int(hashlib.sha256(f"{term}/{n}".encode()).hexdigest()[:12], 16) % 10**9 for n in names}


COLUMNS = ("file", "team", "seed", "kind_given", "passes", *WEIGHTS, "total", "remark")


def class_table(folder: str | Path, seeds: Mapping[str, int] | None = None) -> pd.DataFrame:
    """One table of all hand-ins (`*.json`) in a folder: a row a file, COLUMNS, the best first.

    seeds: of `class_seeds`, to notice a box that was not theirs. A file that cannot be accepted has no score, and a remark that
    says why; so have names of `seeds` that handed in nothing. Raises ValueError for a folder that is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder.name!r} to read hand-ins from.")
    rows = [_row(path, seeds) for path in sorted(folder.glob("*.json"))]
    by_seed: dict[int, set[str]] = {}
    for row in rows:
        if "total" in row:
            by_seed.setdefault(row["seed"], set()).add(row["team"])
    for row in rows:
        if len(others := by_seed.get(row.get("seed"), ())) > 1:
            row["remark"] = "; ".join(
                filter(None, [row["remark"], f"the same box as {', '.join(sorted(others - {row['team']}))}"])
            )
    there = {row.get("team") for row in rows}
    rows += [
        {"team": name, "seed": seed, "remark": "nothing handed in"}
        for name, seed in (seeds or {}).items()
        if name not in there
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seed": "Int64"})
    return table.sort_values("total", ascending=False, ignore_index=True)


def _row(path: Path, seeds: Mapping[str, int] | None) -> dict:
    try:
        one = read_hand_in(path)
    except HandInError as error:
        return {"file": path.name, "remark": str(error)}
    got = grade(one)
    remark = ""
    if seeds is not None and seeds.get(one.team) != one.seed:
        remark = "not the box of this team" if one.team in seeds else "a team that is not on the list"
    return {
        "file": path.name, "team": one.team, "seed": one.seed, "kind_given": one.kind, "passes": round(one.passes),
        **{name: getattr(got, name) for name in (*WEIGHTS, "total")}, "remark": remark,
    }  # fmt: skip


def read_seeds(path: str | Path) -> dict[str, int]:
    """The seeds of a class from the table that `seeds` has written. Raises ValueError for any other file."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return {row["name"]: int(row["seed"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, ValueError):
        raise ValueError(
            f"{Path(path).name} is no table with the columns name and seed: make it with `seeds --out`."
        ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The instructor's command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m helpers.capstone", description="The capstone, for instructors.")
    parts = parser.add_subparsers(dest="command", required=True)
    make = parts.add_parser("seeds", help="a seed for everybody in a class")
    who = make.add_mutually_exclusive_group(required=True)
    who.add_argument("--names", nargs="+", help="names of learners or teams")
    who.add_argument("--teams", type=int, help="how many teams there are")
    make.add_argument("--term", default="", help="any word, such as 2026-spring: another one gives other boxes")
    make.add_argument("--out", help="a CSV file to write; otherwise it is printed")
    judge = parts.add_parser("grade", help="one table of all hand-ins in a folder")
    judge.add_argument("folder")
    judge.add_argument("--seeds", help="the file that `seeds --out` wrote")
    judge.add_argument("--out", help="a CSV file to write as well")
    given = parser.parse_args(arguments)
    try:
        if given.command == "seeds":
            seeds = class_seeds(given.names or given.teams, given.term)
            table = pd.DataFrame(seeds.items(), columns=["name", "seed"])
        else:
            table = class_table(given.folder, read_seeds(given.seeds) if given.seeds else None)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if given.out:
        table.to_csv(given.out, index=False)
    if given.command == "grade" or not given.out:
        with pd.option_context("display.width", 200, "display.max_columns", None, "display.max_colwidth", 60):
            print(table.round(2).to_string(index=False, na_rep=""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
