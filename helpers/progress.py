"""What a learner has done so far, kept in a small file so that a kernel restart loses nothing.

The file is `.progress.json` in the folder of the notebook (`my_lessons/`). COURSE_PROGRESS names another
file, and `COURSE_PROGRESS=off` keeps progress in memory only, as the tests and the builds do.

The module also holds the notes "with the course's version of 00.2" between a check and the next figure.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

_memory: dict = {}
_unsaved = False  # the last write failed: memory is all there is
_notes: list[str] = []


def place() -> Path | None:
    """The progress file, or None if progress is kept in memory only."""
    named = os.environ.get("COURSE_PROGRESS", "")
    if named.lower() == "off":
        return None
    return Path(named).expanduser() if named else Path.cwd() / ".progress.json"


def get(lesson: str, kind: str, name: str, default=None):
    """What is stored for one thing, as in `get("00", "questions", "q1")`."""
    return _read().get("lessons", {}).get(lesson, {}).get(kind, {}).get(name, default)


def put(lesson: str, kind: str, name: str, value) -> None:
    """Store one thing; None forgets it. Other lessons' entries in the file stay as they are."""
    everything = _read()
    shelf = everything.setdefault("lessons", {}).setdefault(lesson, {}).setdefault(kind, {})
    if value is None:
        shelf.pop(name, None)
    else:
        shelf[name] = value
    _write(everything)


def _empty() -> dict:
    return {"version": 1, "lessons": {}}


def _read() -> dict:
    file = place()
    if file is None or _unsaved:
        return _memory or _empty()
    if not file.exists():
        return _empty()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        _check_form(found)
        return found
    except OSError as error:
        print(f"Your progress could not be read ({error.strerror or error}); the quiz starts empty.")
        return _memory or _empty()
    except (ValueError, UnicodeDecodeError):
        return _set_aside(file)


def _check_form(found: object) -> None:
    """A file that is JSON but not ours raises ValueError, and is set aside like a broken one."""
    lessons = found.get("lessons") if isinstance(found, dict) else None
    shelves = lessons.values() if isinstance(lessons, dict) else [None]
    if not all(isinstance(shelf, dict) and all(isinstance(kind, dict) for kind in shelf.values()) for shelf in shelves):
        raise ValueError("not a progress file")


def _set_aside(file: Path) -> dict:
    aside = file.with_name(f"{file.name}.damaged")
    try:
        os.replace(file, aside)
        print(f"The progress file was damaged: it now lies beside as {aside.name}, and a new one begins.")
    except OSError:
        print("The progress file is damaged and cannot be moved; the quiz starts empty.")
    return _empty()


def _write(everything: dict) -> None:
    """Write to a temporary file and rename it, so that a cut-off run leaves the old file or the new one."""
    global _memory, _unsaved
    _memory, _unsaved = everything, False
    file = place()
    if file is None:
        return
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(everything, indent=1, sort_keys=True), encoding="utf-8")
        _rename(temporary, file)
    except OSError as error:
        _unsaved = True
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        print(f"Your progress could not be saved ({error.strerror or error}); the lesson goes on without.")


def _rename(temporary: Path, file: Path) -> None:
    """On Windows a rename fails while another notebook reads the file: try again for a moment."""
    for _ in range(10):
        try:
            return os.replace(temporary, file)
        except PermissionError:
            time.sleep(0.05)
    os.replace(temporary, file)


def note_course_version(exercise_id: str) -> None:
    """Remember that the course's version stands in for this exercise, for the next figure's caption."""
    if exercise_id not in _notes:
        _notes.append(exercise_id)


def forget_note(exercise_id: str) -> None:
    """The learner's own version passed after all."""
    if exercise_id in _notes:
        _notes.remove(exercise_id)


def take_note() -> str:
    """The note for the next figure, once: `"(with the course's version of 00.1 and 00.2)"`, or `""`."""
    if not _notes:
        return ""
    *first, last = _notes
    _notes.clear()
    names = f"{', '.join(first)} and {last}" if first else last
    return f"(with the course's version of {names})"
