"""Run every solution from top to bottom, and print a table of minutes and memory; it goes into the README where that has the marks.

    python -m tools.minutes            all lessons, one after the other, on an otherwise idle machine
    python -m tools.minutes 03 04      these only; the other rows stay as they are
    python -m tools.minutes --build    and keep what was run: writes the notebooks too, as `course.py build` does

Each runs in a kernel of its own, as Run All does. Minutes are by the wall clock; memory is the kernel's peak.
"""

import argparse
import os
import re
import subprocess
import sys
import time

from tools.build_lessons import ROOT, build, execute, sources
from tools.lesson_source import notebooks

README = ROOT / "README.md"
BEGIN, END = "<!-- by python -m tools.minutes -->", "<!-- end -->"


def measure(number: str, keep: bool = False) -> tuple[float, float]:
    """(minutes, peak memory in GB) of one solution, in a process of its own so that no other's memory counts."""
    code = f"from tools.minutes import run; run({number!r}, {keep})"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, kilobytes = map(float, out.split()[-2:])
    return seconds / 60, kilobytes / 1e6


def run(number: str, keep: bool = False) -> None:
    """Execute one solution and print its seconds and its kernel's peak memory in kilobytes (0 on Windows). keep: write the
    notebooks. Ends with the lint's findings if there are any."""
    (source,) = sources(ROOT, [number])
    began = time.time()
    if not keep:
        execute(notebooks(source)[0], source)
    elif findings := build(source, force=True):
        raise SystemExit("\n".join(map(str, findings)))
    seconds, peak = time.time() - began, 0
    if os.name != "nt":
        import resource

        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        peak /= 1024 if sys.platform == "darwin" else 1  # bytes there
    print(seconds, peak)


def read(text: str) -> dict[str, tuple[float, float]]:
    """{lesson's number: (minutes, GB)} of the table in a README's text."""
    part = text[text.index(BEGIN) : text.index(END)]
    return {n: (float(m), float(g)) for n, m, g in re.findall(r"^\| (\d\d) \| ([\d.]+) \| ([\d.]+) \|$", part, re.M)}


def table(rows: dict[str, tuple[float, float]], machine: str) -> str:
    """The table as Markdown, between its marks."""
    lines = [BEGIN, f"Run All, measured on {machine}:", "", "| lesson | minutes | memory, GB |", "|---|---|---|"]
    lines += [f"| {number} | {minutes:.1f} | {memory:.1f} |" for number, (minutes, memory) in sorted(rows.items())]
    lines += [f"| together | {sum(m for m, _ in rows.values()):.1f} | |", END]
    return "\n".join(lines)


def machine() -> str:
    """In words, without a name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} processor cores without a GPU"


def main() -> None:
    """Parse the command line, measure, write after each lesson."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lessons", nargs="*", metavar="NN")
    parser.add_argument("--build", action="store_true", help="write the notebooks too")
    args = parser.parse_args()
    found = {}
    for source in sources(ROOT, args.lessons):
        number = source.stem[:2]
        minutes, memory = found[number] = measure(number, args.build)
        print(f"{number}: {minutes:.1f} minutes, {memory:.1f} GB", flush=True)
        text = README.read_text(encoding="utf-8")
        if BEGIN in text:
            start, end = text.index(BEGIN), text.index(END) + len(END)
            README.write_text(text[:start] + table(read(text) | found, machine()) + text[end:], encoding="utf-8")
    print(table(found, machine()))


if __name__ == "__main__":
    main()
