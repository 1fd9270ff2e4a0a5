"""What a solution's stored outputs were made from: hashes of its code, its quiz, its part of helpers/."""

import ast
import hashlib
import json
import re
from pathlib import Path

import nbformat

from tools.lesson_source import code_cells

ROOT = Path(__file__).resolve().parents[1]
TEXT = {".py", ".json", ".jsonl", ".yaml", ".yml", ".csv", ".tsv", ".txt"}


def made_from(source: Path, solution: nbformat.NotebookNode) -> dict[str, str]:
    """Hashes of all that the outputs depend on: the code, the quiz, and the part of helpers/ that is used."""
    folder, number = source.parents[1], source.stem[:2]
    hashes = {"code": _hash("\n\0".join(cell.source for cell in code_cells(solution)).encode())}
    checks = [base / "checks" / f"lesson_{number}.py" for base in (ROOT / "helpers", folder)]
    checks = [path for path in checks if path.exists()]
    modules = imported([source, *checks])
    used = [*modules, *checks, *(folder / "quizzes").glob(f"{number}_*.yaml")]
    words = "\n".join(path.read_text(encoding="utf-8") for path in modules)
    data = ROOT / "helpers" / "data"
    named = set(re.findall(r'"data" / "(\w+)"', words))  # as all modules write it: DATA = ... / "data" / "prompts"
    used += [entry for entry in sorted(data.iterdir()) if entry.stem in named - {"adapters"}] if data.exists() else []
    for path in used:
        base = folder if path.is_relative_to(folder) else ROOT
        hashes[path.relative_to(base).as_posix()] = hash_of(path)
    hashes |= _adapters(data / "adapters", words + source.read_text(encoding="utf-8")) if "adapters" in named else {}
    return dict(sorted(hashes.items()))


def _adapters(folder: Path, words: str) -> dict[str, str]:
    """Hashes of the adapters that these words name, each with its refusal score: a new adapter makes no lesson stale."""
    scores, hashes = json.loads((folder / "scores.json").read_text(encoding="utf-8")), {}
    for name in sorted(set(re.findall(r"smollm2-135m-(\w+)", words))):
        if (folder / name).is_dir():
            score = json.dumps(scores.get(f"smollm2-135m-{name}"), sort_keys=True)
            hashes[f"helpers/data/adapters/{name}"] = _hash((hash_of(folder / name) + score).encode())
    return hashes


def imported(start: list[Path]) -> list[Path]:
    """The modules of helpers/ that these files import, directly or through each other."""
    found: set[Path] = set()
    waiting = list(start)
    while waiting:
        file = waiting.pop()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for name in _names(node, file):
                path = ROOT.joinpath(*name.split("."))
                for module in (path.with_suffix(".py"), path / "__init__.py"):
                    if module.exists() and module not in found:
                        found.add(module)
                        waiting.append(module)
    return sorted(found)


def _names(node: ast.AST, file: Path) -> list[str]:
    """The dotted names in an import of helpers that may be modules."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.split(".")[0] == "helpers"]
    if not isinstance(node, ast.ImportFrom):
        return []
    module = node.module or ""
    if node.level:
        if not file.is_relative_to(ROOT / "helpers"):
            return []
        package = file.relative_to(ROOT).parts[: -node.level]
        module = ".".join([*package, *filter(None, [module])])
    if module.split(".")[0] != "helpers":
        return []
    return [module, *(f"{module}.{alias.name}" for alias in node.names)]


def hash_of(path: Path) -> str:
    """A short hash of a file or a folder, the same whatever the line ends; cards (.md) do not count."""
    if path.is_file():
        content = path.read_bytes()
        return _hash(content.replace(b"\r\n", b"\n") if path.suffix in TEXT else content)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix not in (".md", ".pyc"))
    return _hash("".join(f"{file.relative_to(path).as_posix()} {hash_of(file)}\n" for file in files).encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
