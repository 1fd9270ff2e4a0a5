"""For instructors: what a class has done, a lesson's answer key, and the links to give out.

    python -m tools.classroom summary FOLDER    learners' progress files, as tables (--csv FILE: also the first as CSV)
    python -m tools.classroom key 03            answers, explanations, and the mistakes that the checks know by name
    python -m tools.classroom links             Colab badges, and nbgitpuller's link (--hub https://your.hub)

FOLDER holds one file a learner, `ada.json`, or one folder a learner with a `.progress.json` in it: what the course
keeps beside the notebooks. Quizzes and exercises are those of the course as it stands here.
"""

import argparse
import json
import sys
from pathlib import Path
from urllib.parse import urlencode

import pandas as pd

from helpers import texts
from tools.lesson_colab import address, badge

ROOT = Path(__file__).resolve().parents[1]
PROGRESS = ".progress.json"


class ClassError(ValueError):
    """Something that the instructor can mend, in one sentence."""


def stems() -> list[str]:
    """The names of the lessons that learners can open, such as 00_meet_the_model."""
    return sorted(path.stem for path in (ROOT / "lessons").glob("[0-9][0-9]_*.ipynb"))


def lessons() -> list[str]:
    """Their numbers."""
    return [stem[:2] for stem in stems()]


# --- what a class has done ----------------------------------------------------------------------------------


def progress_files(folder: Path) -> dict[str, dict]:
    """Each learner's progress, by name. Raises ClassError if there is none to read, or one that is not a progress file."""
    if not folder.is_dir():
        raise ClassError(f"{folder} is not a folder: give the one that holds the learners' progress files.")
    found = {path.parent.name: path for path in sorted(folder.glob(f"*/{PROGRESS}"))}
    found |= {path.stem: path for path in sorted(folder.glob("*.json")) if path.name != PROGRESS}
    if not found:
        raise ClassError(f"{folder} holds neither NAME.json nor NAME/{PROGRESS}: collect the learners' files first.")
    return {name: _read(path) for name, path in sorted(found.items())}


def _read(path: Path) -> dict:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["lessons"]
        well_formed = all(isinstance(kind, dict) for shelf in stored.values() for kind in shelf.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        well_formed = False
    if not well_formed:
        raise ClassError(f"{path.name} of {path.parent.name} is not a progress file of this course: leave it out.")
    return stored


def by_learner(stored: dict[str, dict]) -> pd.DataFrame:
    """One row a learner and lesson that was begun: exercises passed, hints taken, questions right, of how many."""
    rows = []
    for name, shelves in stored.items():
        for lesson in lessons():
            shelf, words = shelves.get(lesson, {}), texts.load(lesson)
            if not shelf:
                continue
            asked = [question.id for question in words.questions.values() if question.kind != "predict"]
            answers = [a for key, a in shelf.get("questions", {}).items() if key in asked and isinstance(a, dict)]
            rows.append(
                {
                    "learner": name,
                    "lesson": lesson,
                    "exercises": sum(shelf.get("checks", {}).get(key) == "passed" for key in words.exercises),
                    "of": len(words.exercises),
                    "hints": sum(shelf.get("hints", {}).get(key, 0) for key in words.exercises),
                    "questions right": sum(answer.get("right") is True for answer in answers),
                    "of them": len(asked),
                }
            )
    return pd.DataFrame(rows)


def by_exercise(stored: dict[str, dict]) -> pd.DataFrame:
    """One row an exercise that somebody tried: how many tried and passed it, and how many hints they took."""
    rows = []
    for lesson in lessons():
        for key, exercise in texts.load(lesson).exercises.items():
            tried = [shelves[lesson] for shelves in stored.values() if key in shelves.get(lesson, {}).get("checks", {})]
            if tried:
                passed = sum(shelf["checks"][key] == "passed" for shelf in tried)
                hints = sum(shelf.get("hints", {}).get(key, 0) for shelf in tried) / len(tried)
                rows.append({"exercise": key, "title": exercise.title, "tried": len(tried), "passed": passed, "hints each": hints})  # fmt: skip
    return pd.DataFrame(rows)


def summary(folder: Path, csv: Path | None = None) -> str:
    """Both tables as text; the first one also as CSV if a file is named."""
    stored = progress_files(folder)
    learners, exercises = by_learner(stored), by_exercise(stored)
    if learners.empty:
        return f"{len(stored)} learners, and none has begun a lesson."
    if csv:
        learners.to_csv(csv, index=False)
    parts = [f"{len(stored)} learners", learners.to_string(index=False)]
    if not exercises.empty:
        hard = exercises.assign(left=exercises.tried - exercises.passed).sort_values(
            ["left", "hints each"], ascending=False
        )
        parts.append("Exercises, those first that most have still open:\n" + hard.round(1).to_string(index=False))
    return "\n\n".join(parts)


# --- a lesson's key, and links ------------------------------------------------------------------------------


def key(lesson: str) -> str:
    """A lesson's answers and explanations, and the named mistakes of its exercises, as markdown."""
    words = texts.load(lesson)
    out = [f"# {lesson} {words.title}: key", "## Quiz"]
    for question in words.questions.values():
        out.append(f"**{question.id}** ({question.kind}). {question.text.strip()}")
        for choice in question.choices:
            mark = "" if question.kind == "predict" else ("✓ " if choice.right else "✗ ")
            out.append(f"- {mark}{choice.text.strip()}: {choice.because.strip()}")
        if question.answer is not None:
            out.append(f"- {question.answer:g} {question.unit}".rstrip())
        out += [f"  {question.because.strip()}"] if question.because else []
    out.append("## Exercises, and what goes wrong in them")
    for exercise in words.exercises.values():
        out.append(
            f"**{exercise.id} {exercise.title}** ({exercise.minutes} minutes, difficulty {exercise.difficulty} of 3)"
        )
        out += [f"- `{name}`: {text.strip()}" for name, text in exercise.messages.items()]
    return "\n\n".join(out)


def links(hub: str = "https://your.hub") -> str:
    """Each lesson's Colab badge, and a link by which nbgitpuller copies the course to a learner's hub."""
    repository = address()
    folder = repository.rsplit("/", 1)[-1].removesuffix(".git")
    query = urlencode(
        {"repo": repository, "branch": "main", "urlpath": f"lab/tree/{folder}/lessons/{stems()[0]}.ipynb"}
    )
    pull = f"{hub.rstrip('/')}/hub/user-redirect/git-pull?{query}"
    return "\n".join([*(f"{stem}: {badge(stem, repository)}" for stem in stems()), f"hub: {pull}"])


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("summary")
    one.add_argument("folder", type=Path)
    one.add_argument("--csv", type=Path)
    commands.add_parser("key").add_argument("lesson")
    commands.add_parser("links").add_argument("--hub", default="https://your.hub")
    options = parser.parse_args(arguments)
    try:
        if options.command == "summary":
            print(summary(options.folder, options.csv))
        elif options.command == "key":
            print(key(options.lesson.zfill(2)))
        else:
            print(links(options.hub))
    except (ClassError, texts.LessonTextError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
