"""course.py's own decisions, without a network, an environment or a model; and the house it stands in."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("course", ROOT / "course.py")
course = importlib.util.module_from_spec(spec)
spec.loader.exec_module(course)


# --- what is asked


def test_start_is_the_default():
    args = course.parse([])
    assert (args.command, args.browser, args.port, args.fresh) == ("start", True, None, None)


def test_start_takes_its_options():
    args = course.parse(["--no-browser", "--port", "9000", "--fresh", "02"])
    assert (args.command, args.browser, args.port, args.fresh) == ("start", False, 9000, "02")


def test_what_follows_test_goes_to_pytest():
    args = course.parse(["test", "-k", "hooks", "--port", "1"])
    assert (args.command, args.extra) == ("test", ["-k", "hooks", "--port", "1"])


def test_an_unknown_command_names_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        course.parse(["tset"])
    assert "give test, build, bench, book, doctor, or nothing" in capsys.readouterr().err


# --- where it runs

LINUX = ("Linux", "x86_64")


@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_supported_pythons(minor):
    assert course.why_not_here((3, minor, 0), *LINUX) is None
    assert course.why_not_here((3, minor, 0), "Darwin", "arm64", "15.1") is None
    assert course.why_not_here((3, minor, 0), "Windows", "AMD64") is None


@pytest.mark.parametrize(
    "version, system, machine, release, said",
    [
        ((3, 10, 9), "Linux", "x86_64", "", "this is Python 3.10"),
        ((3, 15, 0), "Linux", "x86_64", "", "this is Python 3.15"),
        ((3, 12, 0), "Darwin", "x86_64", "15.1", "Intel Macs"),
        ((3, 12, 0), "Darwin", "arm64", "13.6", "macOS 14"),
        ((3, 12, 0), "Windows", "ARM64", "", "64-bit x86"),
    ],
)
def test_one_sentence_points_to_colab(version, system, machine, release, said):
    sentence = course.why_not_here(version, system, machine, release)
    assert said in sentence and "\n" not in sentence
    assert sentence.endswith(course.colab_address())


def test_an_old_python_ends_with_that_sentence(monkeypatch, capsys):
    monkeypatch.setattr(course.sys, "version_info", (3, 9, 1))
    assert course.main([]) == 1
    out = capsys.readouterr().out
    assert "this is Python 3.9" in out and out.count("\n") == 1


def test_no_syntax_is_newer_than_the_oldest_python_that_should_speak():
    import ast

    ast.parse((ROOT / "course.py").read_text(encoding="utf-8"), feature_version=(3, 6))


# --- the environment: stamp and resume


@pytest.fixture
def house(tmp_path, monkeypatch):
    """An empty course folder, with course.py's eyes turned to it and its commands only noted down."""
    for name in ("requirements.txt", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    venv = tmp_path / ".venv"
    python = venv / "bin" / "python"
    for name, value in {"ROOT": tmp_path, "VENV": venv, "PYTHON": python}.items():
        monkeypatch.setattr(course, name, value)
    monkeypatch.setattr(course, "STAMP", venv / "course-ready.json")
    monkeypatch.setattr(course, "torch_source", lambda *_: "plain")
    # Defaults were bound to the real folder when course.py was read.
    real_stamp, real_print, real_pin = course.read_stamp, course.fingerprint, course.pinned
    monkeypatch.setattr(course, "read_stamp", lambda: real_stamp(venv / "course-ready.json"))
    monkeypatch.setattr(course, "fingerprint", lambda: real_print(tmp_path))
    monkeypatch.setattr(course, "pinned", lambda name: real_pin(name, tmp_path))
    return Fake(tmp_path, venv, python, monkeypatch)


class Fake:
    def __init__(self, root, venv, python, monkeypatch):
        self.root, self.venv, self.stamp = root, venv, venv / "course-ready.json"
        self.commands, self.cut = [], False
        monkeypatch.setattr(course, "run", self.run)
        monkeypatch.setattr(course, "version_of", lambda _: course.HERE if python.exists() else None)

    def run(self, *command):
        words = [str(part) for part in command]
        kind = "venv" if "venv" in words else "pip" if "pip" in words else "mend"
        self.commands.append(kind + (" tests" if ".[test]" in words else ""))
        if kind == "venv":
            (self.venv / "bin").mkdir(parents=True, exist_ok=True)
            (self.venv / "bin" / "python").touch()
        return not (kind == "pip" and self.cut)

    def did(self):
        done, self.commands = self.commands, []
        return done


def test_first_run_installs_and_second_does_nothing(house):
    course.ensure_environment()
    assert house.did() == ["venv", "pip"] and house.stamp.exists()
    course.ensure_environment()
    assert house.did() == []


def test_a_cut_installation_leaves_no_stamp_and_goes_on(house):
    house.cut = True
    with pytest.raises(course.Stop, match="same command again"):
        course.ensure_environment()
    assert house.did() == ["venv", "pip"] and not house.stamp.exists()
    house.cut = False
    course.ensure_environment()
    assert house.did() == ["mend", "pip"] and house.stamp.exists()


def test_tests_add_to_a_learners_environment_and_stay(house):
    course.ensure_environment()
    house.did()
    course.ensure_environment(with_tests=True)
    assert house.did() == ["pip tests"]
    course.ensure_environment()
    assert house.did() == []
    (house.root / "requirements.txt").write_text("torch\n")
    course.ensure_environment()  # an environment that had the test tools keeps them
    assert house.did() == ["pip tests"]


def test_a_broken_environment_is_made_anew(house):
    course.ensure_environment()
    (house.venv / "bin" / "python").unlink()
    house.did()
    course.ensure_environment()
    assert house.did() == ["venv", "pip"]


@pytest.mark.parametrize("name", ["requirements.txt", "constraints.txt", "pyproject.toml"])
def test_the_stamp_knows_each_file(house, name):
    before = course.fingerprint()
    with open(house.root / name, "a") as file:
        file.write("# changed\n")
    assert course.fingerprint() != before


def test_the_stamp_knows_python_and_place(tmp_path):
    assert course.fingerprint(ROOT, (3, 11)) != course.fingerprint(ROOT, (3, 12))


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_damaged_stamp_counts_as_none(tmp_path, text):
    (tmp_path / "stamp").write_text(text)
    assert course.read_stamp(tmp_path / "stamp") == {}


def test_a_half_installed_package_is_found(tmp_path):
    def package(name, record):
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (tmp_path / f"{name}.py").write_text("1")
        if record:
            (info / "RECORD").write_text(record)
        return info

    whole = package("whole", "whole.py,sha256=x,1\n")
    short = package("short", "short.py,sha256=x,2\n")
    missing = package("missing", "missing.py,,1\nmissing/gone.py,,5\n")
    listless = package("listless", None)
    only = f"import sys\nsys.path = [{str(tmp_path)!r}] + [p for p in sys.path if 'site-packages' not in p]\n"
    command = [sys.executable, "-c", only + course.MEND]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert whole.exists() and not (short.exists() or missing.exists() or listless.exists())
    assert out.count("half installed") == 3


# --- where torch comes from


@pytest.mark.parametrize(
    "system, nvidia, answer, source",
    [
        ("Linux", False, True, "cpu"),
        ("Linux", False, False, "big"),
        ("Linux", True, True, "plain"),
        ("Darwin", False, True, "plain"),
        ("Windows", False, True, "plain"),
    ],
)
def test_torch_source(system, nvidia, answer, source):
    asked = []

    def answers(url):
        asked.append(url)
        return answer

    assert course.torch_source(system, nvidia, answers) == source
    assert bool(asked) == (system == "Linux" and not nvidia)


def test_no_answer_is_a_no():
    assert course.answers("http://127.0.0.1:9/") is False


def test_an_answer_has_only_so_long(monkeypatch):
    import time

    monkeypatch.setattr(course.urllib.request, "urlopen", lambda *_, **__: time.sleep(5))
    began = time.time()
    assert course.answers("http://127.0.0.1:9/", seconds=0.2) is False
    assert time.time() - began < 2


def test_the_size_is_said_before_the_big_download(house, monkeypatch, capsys):
    monkeypatch.setattr(course, "torch_source", lambda *_: "big")
    course.ensure_environment()
    assert course.GPU_BUILD in capsys.readouterr().out


def test_a_cpu_index_that_fails_falls_back(house, monkeypatch, capsys):
    monkeypatch.setattr(course, "torch_source", lambda *_: "cpu")
    monkeypatch.setattr(course, "run", lambda *c: house.run(*c) and course.CPU_INDEX not in c)
    course.ensure_environment()
    assert house.did() == ["venv", "pip", "pip"]
    assert course.GPU_BUILD in capsys.readouterr().out


def test_nothing_leads_out_of_the_environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    env = course.child_env(HF_HUB_OFFLINE="1")
    assert "PYTHONPATH" not in env and "PYTHONHOME" not in env
    assert (env["PIP_USER"], env["HF_HUB_OFFLINE"]) == ("0", "1")


# --- the lessons


@pytest.fixture
def folders(tmp_path):
    lessons, mine = tmp_path / "lessons", tmp_path / "my_lessons"
    lessons.mkdir()
    for name in ("00_meet", "02_trace"):
        (lessons / f"{name}.ipynb").write_text(name)
    return lessons, mine


def test_lessons_are_copied_and_never_overwritten(folders):
    lessons, mine = folders
    assert course.copy_lessons(lessons, mine) == ["00_meet.ipynb", "02_trace.ipynb"]
    (mine / "00_meet.ipynb").write_text("my work")
    (lessons / "00_meet.ipynb").write_text("a newer version")
    (mine / "02_trace.ipynb").unlink()
    assert course.copy_lessons(lessons, mine) == ["02_trace.ipynb"]
    assert (mine / "00_meet.ipynb").read_text() == "my work"
    assert sorted(path.name for path in mine.iterdir()) == ["00_meet.ipynb", "02_trace.ipynb"]


@pytest.mark.parametrize("number", ["02", "2"])
def test_fresh_copies_lie_beside_the_old_ones(folders, number):
    lessons, mine = folders
    course.copy_lessons(lessons, mine)
    (mine / "02_trace.ipynb").write_text("my work")
    assert course.fresh_copy(number, lessons, mine).name == "02_trace_2.ipynb"
    assert course.fresh_copy(number, lessons, mine).name == "02_trace_3.ipynb"
    assert (mine / "02_trace.ipynb").read_text() == "my work"
    assert (mine / "02_trace_3.ipynb").read_text() == "02_trace"


def test_a_fresh_copy_of_no_lesson(folders):
    with pytest.raises(course.Stop, match="no lesson 07; those that are here: 00, 02"):
        course.fresh_copy("07", *folders)


def test_jupyterlab_is_opened_at_the_lesson():
    page = ROOT / "my_lessons" / "00_meet.ipynb"
    command = course.lab_command(page, 9000, browser=False, windows=False, home="/home/ada")
    assert "--LabApp.default_url=/lab/tree/my_lessons/00_meet.ipynb" in command
    assert {"--port=9000", "--ServerApp.port_retries=0", "--no-browser"} < set(command)
    assert "--KernelManager.transport=ipc" in command and "--allow-root" not in command


def test_jupyterlab_talks_over_ports_where_files_do_not_work():
    for more in ({"windows": True, "home": "C:\\"}, {"windows": False, "home": "/home/" + "a" * 40}):
        assert "--KernelManager.transport=ipc" not in course.lab_command(None, **more)


# --- doctor

PINS = {"torch": "2.13.0", "numpy": "2.4.6"}
MODEL = {"ready": True, "path": "cache", "size": 541e6, "hash": "abc", "problem": None}
WELL = {
    "python": "3.12.1, Linux",
    "disk": 50.0,
    "venv": "ready",
    "versions": {"torch": "2.13.0+cpu", "numpy": "2.4.6"},
    "memory": [16.0, 9.0],
    "device": "cpu",
    "model": MODEL,
}


def advice(**changed):
    return {what: line for what, _, line in course.diagnose({**WELL, **changed}, PINS) if line}


def test_a_well_machine_gets_no_advice():
    assert advice() == {}
    shown = {what: how for what, how, _ in course.diagnose(WELL, PINS)}
    assert {"torch", "device", "memory", "cache", "model hash", "free disk"} <= set(shown)


@pytest.mark.parametrize(
    "changed, what",
    [
        ({"venv": "missing"}, ".venv"),
        ({"venv": "broken"}, ".venv"),
        ({"venv": "unfinished"}, ".venv"),
        ({"disk": 0.5}, "free disk"),
        ({"versions": {"torch": None}}, "torch"),
        ({"versions": {"numpy": "2.0.0"}}, "numpy"),
        ({"memory": [4.0, 0.5]}, "memory"),
        ({"error": "ImportError: no torch"}, "import"),
        ({"model": {**MODEL, "ready": False, "hash": None, "size": 0}}, "cache"),
        ({"model": {**MODEL, "problem": "The weights differ."}}, "model hash"),
    ],
)
def test_each_trouble_gets_one_line_of_advice(changed, what):
    found = advice(**changed)
    assert list(found) == [what] and "\n" not in found[what]


def test_doctor_fails_when_something_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(course, "gather", lambda: {"python": "3.12.1", "disk": 50.0, "venv": "missing"})
    assert course.main(["doctor"]) == 1
    assert "give: python course.py" in capsys.readouterr().out
    monkeypatch.setattr(course, "gather", lambda: {"python": "3.12.1", "disk": 50.0, "venv": "ready"})
    assert course.main(["doctor"]) == 0


# --- the house

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def lines(name):
    rows = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [row.strip() for row in rows if row.strip() and not row.startswith("#")]


def test_constraints_are_exact_and_fit_the_ranges():
    pins = {}
    for row in lines("constraints.txt"):
        name, version = re.fullmatch(r"([a-z0-9-]+)==([0-9a-z.]+)", row).groups()
        assert name not in pins, f"{name} stands there twice"
        pins[name] = version
    extras = PROJECT["project"]["optional-dependencies"]
    for row in lines("requirements.txt") + extras["test"] + extras["book"]:
        wanted = Requirement(row)
        if wanted.name == PROJECT["project"]["name"]:  # an extra that takes in another
            continue
        assert pins[wanted.name] in wanted.specifier, row


def test_what_doctor_shows_is_pinned():
    assert all(course.pinned(name) for name in course.PACKAGES)


def test_the_public_address_stands_in_one_place():
    address = PROJECT["project"]["urls"]["Repository"].removeprefix("https://github.com/")
    assert course.colab_address().endswith(address)
    kinds = ("*.py", "*.md", "*.ipynb", "*.yaml", "*.txt")
    skipped = (".venv", "my_lessons", "lessons", "_site")  # the build writes it into badges and cells for Colab
    files = [path for kind in kinds for path in ROOT.rglob(kind) if not set(path.parts) & set(skipped)]
    assert not [path for path in files if address in path.read_text(encoding="utf-8")]


def test_the_map_of_lessons_shows_the_lessons_that_are_here():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for lesson in (ROOT / "lessons").glob("[0-9][0-9]_*.ipynb"):
        assert f"lessons/{lesson.name}" in readme


def test_ruff_is_content():
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
