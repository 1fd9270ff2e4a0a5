"""What may not stand in a lesson: a lint for stored notebooks and for quizzes. Each finding is a sentence.

Harmful completions cannot be told from their words alone. The lint's rule: where a stored output shows one
of the course's harmful prompts, what follows it may be a refusal or at most a few words. An answer printed
without its prompt is not seen, so a lesson prints answers by their first words only.
"""

import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from helpers.texts import LessonText

FOLDERS = "home|root|Users|tmp|var|private|opt|usr|mnt|media|work|workspace|content|data|srv"
PATHS = re.compile(rf"(?<![\w.:/~>-])/(?:{FOLDERS})/[\w.-]+|\b[A-Z]:\\+[\w.-]+|file://")
TOKENS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bAKIA[0-9A-Z]{16}\b"
    r"|[?&]token=[0-9a-f]{16,}|-----BEGIN [A-Z ]*PRIVATE KEY"
)
IMAGE = re.compile(r"<img\b[^>]*>", re.IGNORECASE)
ALT = re.compile(r"\balt=(?:\"([^\"]*)\"|'([^']*)')", re.IGNORECASE)
DATA = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=]+")
SHORTEST_ALT, LONGEST_ANSWER = 20, 12
LARGEST_OUTPUT, LARGEST_NOTEBOOK = 800_000, 5_000_000
WIDGETS = "application/vnd.jupyter.widget"


def lint_notebook(notebook: dict, name: str, harmful: Iterable[str] = ()) -> list[str]:
    """Everything that may not be stored in a notebook; after the prompts `harmful`, answers are looked at."""
    found, harmful, total = [], list(harmful), 0
    for key in notebook["metadata"].keys() - {"kernelspec", "language_info", "course"}:
        found.append(f"{name}: notebook metadata has {key!r} (widget state, or an editor's own).")
    for cell in notebook["cells"]:
        where = f"{name}, cell {cell['id']}"
        found += [f"{where}: {fault}" for fault in _source_faults(cell)]
        if "execution" in cell["metadata"]:
            found.append(f"{where}: timings are stored.")
        for output in cell.get("outputs", []):
            size = len(str(output))
            total += size
            if size > LARGEST_OUTPUT:
                found.append(f"{where}: an output of {size:,} characters; the limit is {LARGEST_OUTPUT:,}.")
            found += [f"{where}: {fault}" for fault in _output_faults(output)]
            for text in set(_texts(output)):
                found += [f"{where}: {fault}" for fault in long_answers(text, harmful)]
    if total > LARGEST_NOTEBOOK:
        found.append(f"{name}: {total:,} characters of outputs; the limit is {LARGEST_NOTEBOOK:,}.")
    return found


def _source_faults(cell: dict) -> Iterator[str]:
    source = cell["source"]
    yield from _secrets(source)
    if cell["cell_type"] == "code":
        if re.search(r"\b(?:plt|pyplot)\.show\(|(?<!\w)display\(\s*fig", source):
            yield "a figure is shown without show(fig, alt)."
        if re.search(r"^\s*!?%?pip install", source, re.MULTILINE) and not cell["id"].endswith("-colab"):
            yield "a lesson installs something: that is the set-up's work."
    else:
        for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", source):
            badge = "badge" in target
            if len(alt.strip()) < (3 if badge else SHORTEST_ALT):
                yield f"the picture {target[:60]} has no alt text."
        yield from _pictures(source)


def _output_faults(output: dict) -> Iterator[str]:
    kind = output["output_type"]
    if kind == "error":
        yield f"a stored error: {output.get('ename')}: {output.get('evalue')}"
    if kind == "stream" and output.get("name") == "stderr":
        yield f"a message on stderr: {_joined(output['text']).strip()[:100]!r}"
    data = output.get("data", {})
    if any(key.startswith(WIDGETS) for key in data):
        yield "a widget view is stored (it cannot be shown without its kernel)."
    if "application/javascript" in data:
        yield "a script is stored."
    page = _joined(data.get("text/html", ""))
    if any(key.startswith("image/") for key in data) and not IMAGE.search(page):
        yield "a picture without alt text: show it by show(fig, alt)."
    yield from _pictures(page)
    for text in _texts(output):
        yield from _secrets(text)


def _pictures(page: str) -> Iterator[str]:
    for tag in IMAGE.findall(page):
        alt = ALT.search(tag)
        if alt is None or len(html.unescape(alt[1] or alt[2] or "").strip()) < SHORTEST_ALT:
            yield "an <img> has no alt text that says what is to be seen."


def _secrets(text: str) -> Iterator[str]:
    for path in PATHS.findall(text):
        yield f"an absolute path: {path}"
    if TOKENS.search(text):
        yield "something that looks like a key or token."


def _texts(output: dict) -> Iterator[str]:
    """An output's texts, without pictures, with a table's row on one line."""
    if "text" in output:
        yield _joined(output["text"])
    for kind, value in output.get("data", {}).items():
        if kind == "text/html":
            page = DATA.sub("", _joined(value))
            page = re.sub(r"</(?:tr|p|div|li|figure)>|<br ?/?>", "\n", re.sub(r"\s*\n\s*", " ", page))
            yield html.unescape(re.sub(r"<[^>]*>", " ", page))
        elif kind.startswith("text/"):
            yield _joined(value)


def long_answers(text: str, harmful: Iterable[str]) -> Iterator[str]:
    """Findings for harmful prompts in `text` after which come more than a few words that do not refuse."""
    from helpers.refusal import is_refusal

    harmful = [prompt for prompt in harmful if prompt in text]
    for prompt in harmful:
        for rest in text.split(prompt)[1:]:
            for other in harmful:
                rest = rest.split(other)[0]
            rest = re.sub(r"<\|[^|]*\|>", " ", rest)
            lines = [line for line in rest.split("\n") if re.search(r"[a-z]{2}", line) and line.strip() != "assistant"]
            words = re.findall(r"[A-Za-z][\w']*", " ".join(lines[:2]))
            if len(words) > LONGEST_ANSWER and not is_refusal(" ".join(lines[:2])[:160]):
                yield f"{len(words)} words, no refusal, after a harmful prompt: {' '.join(words[:4])}..."


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def lint_quiz(words: LessonText) -> list[str]:
    """Where a quiz could be answered without knowing, or explains too little."""
    found, name = [], words.path.name
    for question in words.questions.values():
        where = f"{name}, {question.id}"
        reasons = [choice.because for choice in question.choices]
        if any(len(reason) < 20 for reason in reasons) or (question.because and len(question.because) < 20):
            found.append(f"{where}: an explanation is shorter than 20 characters.")
        if len(set(reasons)) < len(reasons):
            found.append(f"{where}: two choices have the same explanation.")
        if question.kind == "multiple" and len(question.right) == len(question.choices):
            found.append(f"{where}: every choice is right.")
    single = [question for question in words.questions.values() if question.kind == "single"]
    if len(single) >= 2:
        longest = sum(_right_is_longest(question) for question in single)
        if longest > max(1, len(single) // 2):
            found.append(f"{name}: the right choice is the longest in {longest} of {len(single)} questions.")
        place, count = Counter(min(question.right) for question in single).most_common(1)[0]
        if count > max(1, (len(single) + 1) // 2):
            found.append(f"{name}: the right choice is number {place + 1} in {count} of {len(single)} questions.")
    for exercise in words.exercises.values():
        for what, several in (("hints", exercise.hints), ("messages", tuple(exercise.messages.values()))):
            if len(set(several)) < len(several):
                found.append(f"{name}, exercise {exercise.id}: two {what} are the same.")
    return found


def _right_is_longest(question) -> bool:
    lengths = [len(choice.text) for choice in question.choices]
    (right,) = question.right
    return all(lengths[right] > length for place, length in enumerate(lengths) if place != right)
