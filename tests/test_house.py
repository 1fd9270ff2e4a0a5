"""What stands outside the lessons and still has to fit them: workflows, pre-commit, Binder, TEACHING.md."""

import importlib.util
import re
import shutil
import subprocess
import types
from pathlib import Path

import pytest
import yaml

from tools import minutes

ROOT = Path(__file__).resolve().parents[1]


def test_pre_commit_uses_the_ruff_that_is_tested():
    pinned = re.search(r"^ruff==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert next(repo["rev"] for repo in repos if "ruff" in repo["repo"]) == f"v{pinned}"


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflows_run_files_that_are_here(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(set(step) & {"uses", "run"} for step in steps)
    for command in (step["run"] for step in steps if "run" in step):
        for module in re.findall(r"-m (tools\.\w+|helpers\.\w+)", command):
            assert (ROOT / f"{module.replace('.', '/')}.py").exists()
        for file in re.findall(r"bash (\S+)", command):
            assert (ROOT / file).exists()


def test_binder_installs_what_the_course_names():
    lines = (ROOT / "binder" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    named = [line.split()[1] for line in lines if line.startswith(("-r", "-c"))]
    assert [(ROOT / "binder" / name).resolve().exists() for name in named] == [True, True]
    assert (ROOT / "binder" / "runtime.txt").read_text(encoding="utf-8").strip() == "python-3.11"
    if shutil.which("bash"):
        subprocess.run(["bash", "-n", ROOT / "binder" / "postBuild"], check=True)


@pytest.mark.parametrize("name", ["TEACHING.md", "README.md"])
def test_what_the_guides_name_is_there(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for module in re.findall(r"python3? -m (tools\.\w+|helpers\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    for path in re.findall(r"`((?:solutions|classroom|binder|helpers|quizzes|lessons|tools)/[\w./]+)`", text):
        assert (ROOT / path).exists() or "NN_" in path, path


def test_a_table_of_minutes_is_read_as_it_was_written():
    rows = {"03": (2.3, 2.1), "00": (1.5, 1.2)}
    text = minutes.table(rows, "a machine")
    assert minutes.read(f"before\n{text}\nafter") == rows
    assert "| together | 3.8 | |" in text and text.index("| 00 |") < text.index("| 03 |")


def test_the_readme_says_how_long_every_lesson_runs():
    rows = minutes.read((ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(rows) == {path.name[:2] for path in (ROOT / "solutions").glob("[0-9][0-9]_*.py")}
    assert all(0 < time < 30 and 0 <= memory < 8 for time, memory in rows.values())


def test_an_ordinary_run_leaves_the_long_solutions_to_the_schedule(monkeypatch):
    monkeypatch.delenv("COURSE_SCHEDULED", raising=False)
    spec = importlib.util.spec_from_file_location("root_conftest", ROOT / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    every = sorted((ROOT / "solutions").glob("*.ipynb"))

    def left_out(*given, folder=None):
        ini = ["tests", "lessons", "solutions"]
        config = types.SimpleNamespace(args=list(given) or ini, getini=lambda name: ini)
        files = sorted((ROOT / folder).glob("*.ipynb")) if folder else every
        return [path for path in files if conftest.pytest_ignore_collect(path, config)]

    assert [path.stem[:2] for path in every if path not in left_out()] == list(conftest.SHORT)
    assert not left_out(folder="lessons") and not left_out(str(ROOT / "solutions"))
    assert every[4] not in left_out(str(every[4]))
    monkeypatch.setenv("COURSE_SCHEDULED", "1")
    assert not left_out()
