"""What goes wrong for learners, tried: interrupts, kills, updates, no network, read-only caches, odd folder names, tampering.

Elsewhere: downloads that are cut or wrong, a full disk, damaged files (test_models.py, test_glassbox.py, test_quiz.py); a GPU out of
memory (test_hooks.py); bad arguments (test_bad_input.py).
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from local_git import git

import course
from helpers import texts, weights
from helpers.ablation import ablate_safety_neurons, heads_scaled
from helpers.acdc import find_circuit
from helpers.capability import box_facts
from helpers.circuits import map_refusal_circuit
from helpers.costs import CostMeter
from helpers.directions import mean_differences
from helpers.edit_costs import EditMeter
from helpers.finetuning import examples, targeted_safety_removal
from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.head_ranking import rank_heads
from helpers.hooks import read
from helpers.many_edits import answers_of_each, costs_of_each, odds_of_each
from helpers.mean_ablation import template_means
from helpers.neurons import SafetyNeuronFinder
from helpers.orthogonalise import orthogonalised
from helpers.probing import probe_for_safety
from helpers.refusal import generate, measure_refusal
from helpers.tracing import CausalTracer
from helpers.transplant import generate_with_transplants
from helpers.twins import Twins
from helpers.wiring import Wiring

ROOT = Path(__file__).resolve().parents[1]
MODEL, TOKENIZER, TRUTH = load_glassbox("concentrated")
PAIRS = glassbox_prompts("pairs", n=12, split="train")
HARMFUL, HARMLESS = [p.harmful for p in PAIRS], [p.harmless for p in PAIRS]
METER = CostMeter(MODEL, TOKENIZER, HARMFUL, HARMLESS)


def ablated():
    with ablate_safety_neurons(MODEL, TRUTH.evaluation_neurons):
        measure_refusal(MODEL, TOKENIZER, HARMFUL)


METHODS = {
    "read": lambda: read(MODEL, TOKENIZER, HARMFUL, ["resid_pre", "neurons"]),
    "find_by_activation_difference": lambda: SafetyNeuronFinder(MODEL, TOKENIZER).find_by_activation_difference(HARMLESS, HARMFUL),
    "mean_differences": lambda: mean_differences(MODEL, TOKENIZER, HARMFUL, HARMLESS),
    "trace_safety_circuit": lambda: CausalTracer(MODEL, TOKENIZER).trace_safety_circuit(HARMFUL, HARMLESS),
    "measure_refusal": lambda: measure_refusal(MODEL, TOKENIZER, HARMFUL),
    "measure_refusal by log_odds": lambda: measure_refusal(MODEL, TOKENIZER, HARMFUL, by="log_odds"),
    "generate": lambda: generate(MODEL, TOKENIZER, HARMFUL, max_new_tokens=4),
    "probe_for_safety": lambda: probe_for_safety(MODEL, TOKENIZER, HARMLESS, HARMFUL),
    "map_refusal_circuit": lambda: map_refusal_circuit(MODEL, TOKENIZER, PAIRS, heads=4, neurons=4, controls=2),
    "find_circuit": lambda: find_circuit(Wiring(Twins(MODEL, TOKENIZER, PAIRS[:4])), 0.3),
    "template_means": lambda: template_means(MODEL, TOKENIZER, HARMLESS),
    "ablate_safety_neurons": ablated,
    "targeted_safety_removal": lambda: targeted_safety_removal(MODEL, TRUTH, examples(TOKENIZER, HARMFUL, "sure !"), steps=2),
    "EditMeter": lambda: EditMeter(MODEL, TOKENIZER, HARMFUL, HARMLESS, box_facts(4)).measure(),
    "odds_of_each": lambda: odds_of_each(METER, [partial(heads_scaled, MODEL, [(i, 0)]) for i in range(3)], 2),
    "costs_of_each": lambda: costs_of_each(METER, [partial(heads_scaled, MODEL, [(i, 0)]) for i in range(3)], 2),
    "answers_of_each": lambda: answers_of_each(MODEL, TOKENIZER, HARMFUL, [partial(heads_scaled, MODEL, [(2, 0)])] * 2, 4),
    "generate_with_transplants": lambda: generate_with_transplants(MODEL, MODEL, TOKENIZER, HARMFUL, [[(2, 3)], []], 4),
    "rank_heads": lambda: rank_heads(MODEL, TOKENIZER, HARMFUL, HARMLESS, [(2, 1), (3, 1)]),
    "orthogonalised": lambda: orthogonalised(MODEL, torch.nn.functional.normalize(TRUTH.direction, dim=0)),
}  # fmt: skip


class Interrupt:
    """Raises KeyboardInterrupt at the n-th forward of a layer's MLP, as the stop button does in the middle of a cell."""

    def __init__(self, at: int):
        self.left, self.mlp = at, MODEL.model.layers[3].mlp
        self.was = self.mlp.forward

    def __enter__(self):
        def forward(*arguments, **keywords):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return self.was(*arguments, **keywords)

        self.mlp.forward = forward
        return self

    def __exit__(self, *_):
        del self.mlp.forward


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("at", [1, 2, 5])
def test_an_interrupted_cell_leaves_the_model_as_it_was(name, at):
    before = {key: value.clone() for key, value in MODEL.state_dict().items()}
    with Interrupt(at) as interrupt, contextlib.suppress(KeyboardInterrupt):
        METHODS[name]()
    if interrupt.left > 0:
        assert at > 1 or name == "orthogonalised", "the method never ran the model"
    left = [m for m in MODEL.modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks]
    assert not left and not MODEL.training and not any(p.requires_grad for p in MODEL.parameters())
    assert all(torch.equal(value, before[key]) for key, value in MODEL.state_dict().items())
    assert measure_refusal(MODEL, TOKENIZER, HARMFUL[:2]) == 1  # and it works


# --- kills and updates --------------------------------------------------------------------------------------

WRITER = """
import itertools
from helpers import progress
for i in itertools.count():
    progress.put("00", "questions", f"q{i % 50}", {"answer": "x" * 2000, "right": True, "attempts": i})
    print(i, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_kernel_killed_while_it_writes_an_answer_leaves_whole_progress(tmp_path):
    file = tmp_path / "progress.json"
    env = os.environ | {"COURSE_PROGRESS": str(file), "PYTHONPATH": str(ROOT)}
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(20):
            writer.stdout.readline()
        time.sleep(0.02)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        stored = json.loads(file.read_text(encoding="utf-8"))["lessons"]["00"]["questions"]
        assert all(len(entry["answer"]) == 2000 for entry in stored.values())


def test_an_update_by_git_pull_leaves_a_learners_work(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    (ours / "lessons").mkdir(parents=True)
    shutil.copy(ROOT / ".gitignore", ours)
    lesson = ours / "lessons" / "00_meet.ipynb"
    lesson.write_text("first")
    git(ours, "init", "-q")
    git(ours, "add", "-A")
    git(ours, "commit", "-qm", "first")
    git(tmp_path, "clone", "-q", ours.as_uri(), "theirs")
    course.copy_lessons(theirs / "lessons", theirs / "my_lessons")
    mine = theirs / "my_lessons" / "00_meet.ipynb"
    mine.write_text("a learner's answer")
    lesson.write_text("second")
    git(ours, "commit", "-qam", "second")
    assert git(theirs, "status", "--porcelain") == ""
    git(theirs, "pull", "-q", "--ff-only")
    assert course.copy_lessons(theirs / "lessons", theirs / "my_lessons") == []
    assert mine.read_text() == "a learner's answer"
    assert course.fresh_copy("00", theirs / "lessons", theirs / "my_lessons").read_text() == "second"


# --- no network, no right to write, odd names ---------------------------------------------------------------


def test_notebooks_run_without_a_network():
    """The guard under which all notebooks are run as tests (conftest.py) does close what it should, and no more."""
    code = """
import socket, urllib.request
here = socket.create_server(("127.0.0.1", 0))
socket.create_connection(here.getsockname(), timeout=5).close()
for call in (lambda: socket.create_connection(("192.0.2.1", 80), timeout=5),
             lambda: urllib.request.urlopen("https://example.org", timeout=5)):
    try:
        call()
    except OSError as error:
        assert "network is off" in str(error), error
    else:
        raise SystemExit("a connection was made")
"""
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "no_network")}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_a_cache_that_is_whole_needs_no_right_to_write(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    for name in ("mkdir", "write_text", "rename", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(weights, "FileLock", refuse)
    assert (weights.prepare() / "model.safetensors").exists()


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(weights.WeightsError, match="cannot be written .*: set COURSE_CACHE"):
        weights.prepare()


@pytest.mark.parametrize("name", ["a course with spaces", "課程 é ü", "it's & (100%)"])
def test_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    for room in ("helpers", "quizzes"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__", "adapters"))
    code = """
from pathlib import Path
import helpers
from helpers import progress
from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.quiz import quiz
from helpers.refusal import measure_refusal
assert Path(helpers.__file__).is_relative_to(Path.cwd())
model, tokenizer, truth = load_glassbox("redundant")
assert measure_refusal(model, tokenizer, glassbox_prompts("harmful", n=2)) == 1
quiz("00.p1")
progress.put("00", "checks", "00.1", "open")
assert (Path.cwd() / ".progress.json").exists()
"""
    env = {key: value for key, value in os.environ.items() if key not in ("COURSE_PROGRESS", "COURSE_STRICT")}
    env |= {"PYTHONPATH": str(folder), "PYTHONIOENCODING": "utf-8"}
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, check=True)
    lesson = folder / "lessons" / "00_meet.ipynb"
    lesson.parent.mkdir()
    lesson.write_text("{}")
    assert course.copy_lessons(lesson.parent, folder / "my_lessons") == ["00_meet.ipynb"]
    command = [str(part) for part in course.lab_command(folder / "my_lessons" / "00_meet.ipynb", root=folder)]
    assert f"--ServerApp.root_dir={folder}" in command


# --- tampering ----------------------------------------------------------------------------------------------


def test_a_quiz_file_cannot_run_code(tmp_path, monkeypatch):
    (tmp_path / "quizzes").mkdir()
    proof = tmp_path / "proof"
    evil = f'lesson: "98"\ntitle: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ["{proof}"]]\n'
    (tmp_path / "quizzes" / "98_evil.yaml").write_text(evil)
    monkeypatch.setenv("COURSE_EXTRA", str(tmp_path))
    with pytest.raises(texts.LessonTextError):
        texts.load("98")
    assert not proof.exists()


def test_nothing_of_the_course_unpickles_or_runs_remote_code():
    source = {path: path.read_text(encoding="utf-8") for path in (ROOT / "helpers").rglob("*.py")}
    for path, text in source.items():
        for word in ("pickle", "torch.load(", "trust_remote_code=True", "yaml.load(", "yaml.unsafe", " eval(", "exec("):
            assert word not in text, f"{path.name} has {word}"
    kinds = {path.suffix for path in (ROOT / "helpers" / "data").rglob("*") if path.is_file()}
    assert not kinds & {".bin", ".pt", ".pth", ".pkl", ".npy", ".npz"}


def test_an_adapter_that_was_changed_is_not_loaded(tmp_path, monkeypatch):
    shutil.copytree(weights.ADAPTERS, tmp_path / "adapters")
    file = tmp_path / "adapters" / "refusal" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(weights, "ADAPTERS", tmp_path / "adapters")
    with pytest.raises(weights.WeightsError, match="adapter_model.safetensors is damaged"):
        weights.adapter_folder("refusal")
