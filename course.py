"""The one door to the course. It needs nothing but Python 3.11 to 3.14.

    python course.py            make the environment, fetch the model, open JupyterLab at lesson 00
    python course.py doctor     what is installed, what is wrong, and what to do about it
    python course.py test       run every test; what follows goes to pytest (test -k hooks)
    python course.py build      make the notebooks again from their sources (build 00 --check)
    python course.py bench      the helpers' speed beside TransformerLens, nnsight and plain loops
    python course.py book       the lessons worked through as a web site, in _site/

Each can be stopped at any moment: the next run goes on where it was cut.
"""

# Standard library only, and no syntax newer than Python 3.6: an old Python must reach its one sentence.
import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "course-ready.json"
LESSONS = ROOT / "lessons"
MINE = ROOT / "my_lessons"
WINDOWS = os.name == "nt"
PYTHON = VENV / "Scripts" / "python.exe" if WINDOWS else VENV / "bin" / "python"

OLDEST, NEWEST = (3, 11), (3, 14)
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GPU_BUILD = "about 2.7 GB"  # torch 2.13 for Linux on x86-64 and the GPU libraries it asks for, summed by file
PEERS = ("transformer-lens==4.3.0", "nnsight==0.8.1")  # what `bench` measures beside the course
PACKAGES = ("torch", "transformers", "peft", "scikit-learn", "numpy", "jupyterlab", "ipywidgets")


class Stop(Exception):
    """A sentence for the learner; the command ends with it."""


# --- what is asked ------------------------------------------------------------------------------------------


def parse(argv):
    """Command line -> namespace with `command`; start has browser, port and fresh, the others have extra."""
    parser = argparse.ArgumentParser(
        prog="course.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if argv and argv[0] in ("test", "build", "bench", "book", "doctor"):
        return argparse.Namespace(command=argv[0], extra=list(argv[1:]))
    parser.add_argument("--no-browser", dest="browser", action="store_false", help="print the address only")
    parser.add_argument("--port", type=int, help="port of JupyterLab (left out: 8888, or the next free one)")
    parser.add_argument("--fresh", metavar="NN", help="copy lesson NN anew, beside yours, and open it")
    args, extra = parser.parse_known_args(argv)
    if extra:
        parser.error(
            f"{' '.join(extra)!r} is not understood: give test, build, bench, book, doctor, or nothing to start"
        )
    args.command = "start"
    return args


def colab_address(root=ROOT):
    """Where Colab lists the notebooks of this repository. Its address is set in pyproject.toml alone."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^Repository\s*=\s*"https://github\.com/([^"]+?)/?"', text, re.MULTILINE)
    return "https://colab.research.google.com/" + (f"github/{found.group(1)}" if found else "")


def why_not_here(version, system, machine, mac_release=""):
    """One sentence when this Python cannot run the course, else None. The other limits are torch's."""
    colab = f"or open the lessons on Google Colab: {colab_address()}"
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        here = f"this is Python {version[0]}.{version[1]}"
        return f"The course needs Python 3.11 to 3.14 and {here}: install one from python.org, {colab}"
    if system == "Darwin" and machine != "arm64":
        return f"PyTorch has no build for Intel Macs or Intel Pythons: use Python for Apple silicon, {colab}"
    if system == "Darwin" and mac_release.split(".")[0] in ("11", "12", "13"):
        return f"PyTorch needs macOS 14 or newer and this is {mac_release}: update macOS, {colab}"
    if system == "Windows" and (machine.upper() != "AMD64" or sys.maxsize < 2**32):
        return f"PyTorch needs a Python for 64-bit x86 on Windows: install it from python.org, {colab}"
    return None


# --- the environment ----------------------------------------------------------------------------------------


def fingerprint(root=ROOT, version=sys.version_info):
    """Changes with what is to be installed, with Python's minor version, and with where the folder lies."""
    digest = hashlib.sha256(f"{version[0]}.{version[1]} {root}".encode())
    for name in ("requirements.txt", "constraints.txt", "pyproject.toml"):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def read_stamp(path=STAMP):
    """What the last finished installation wrote; empty when there is none or it cannot be read."""
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def is_ready(stamp, wanted, with_tests):
    """Whether a stamp says that all is installed; an environment for tests serves the lessons too."""
    return stamp.get("fingerprint") == wanted and bool(stamp.get("tests") or not with_tests)


def version_of(python):
    """'3.12' where that Python starts and has pip, else None."""
    code = "import pip, sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def has_nvidia_driver():
    places = ("/proc/driver/nvidia/version", "/usr/lib/wsl/lib/nvidia-smi")
    return shutil.which("nvidia-smi") is not None or any(os.path.exists(place) for place in places)


def answers(url, seconds=3.0):
    """Whether `url` answers in time. In a thread, since looking up a name knows no time limit of its own."""
    reply = []

    def ask():
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=seconds) as response:
                reply.append(response.status == 200)
        except Exception:  # no name, no route, no certificate: whatever fails, it means no
            reply.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return reply == [True]


def torch_source(system, nvidia, answers=answers):
    """Where torch comes from: 'cpu' (PyTorch's own index), 'big' (GPU build) or 'plain' (pip's own).

    Only for Linux does pip take a build with GPU libraries, which are of no use without an NVIDIA driver.
    """
    if system != "Linux" or nvidia:
        return "plain"
    return "cpu" if answers(f"{CPU_INDEX}/torch/") else "big"


def pinned(name, root=ROOT):
    text = (root / "constraints.txt").read_text(encoding="utf-8")
    return re.search(rf"^{re.escape(name)}==(\S+)", text, re.MULTILINE).group(1)


# A package cut in the middle of its installation can look installed: compare each with its own list of files.
MEND = """
import importlib.metadata, pathlib, shutil
def gone(dist, file):
    place = pathlib.Path(dist.locate_file(file))
    return not place.exists() or (file.size is not None and place.stat().st_size != file.size)
for dist in list(importlib.metadata.distributions()):
    folder, files = pathlib.Path(dist._path), dist.files
    if folder.suffix == ".dist-info" and not folder.name.startswith("pip-"):
        if not files or any(gone(dist, file) for file in files if file.suffix != ".pyc"):
            print("half installed, taken again:", folder.stem)
            shutil.rmtree(folder)
"""


def child_env(**more):
    """The caller's environment without what would lead Python or pip out of .venv."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONHOME", "PYTHONPATH")}
    return dict(env, PYTHONNOUSERSITE="1", PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", **more)


def run(*command):
    """Run a command in the course's folder; whether it succeeded."""
    sys.stdout.flush()
    return subprocess.call([str(part) for part in command], cwd=str(ROOT), env=child_env()) == 0


def become(command, env):
    """The last command of all: takes this process's place where the system can do that; its exit code."""
    command = [str(part) for part in command]
    sys.stdout.flush()
    if not WINDOWS:
        os.chdir(str(ROOT))
        os.execve(command[0], command, env)
    child = subprocess.Popen(command, cwd=str(ROOT), env=env)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # Ctrl-C reaches the child too, and it says goodbye itself
            pass


def ensure_environment(with_tests=False):
    """Make `.venv` fit, or leave it when its stamp says that it fits. A new stamp is written last."""
    stamp, wanted, usable = read_stamp(), fingerprint(), version_of(PYTHON) == HERE
    if usable and is_ready(stamp, wanted, with_tests):
        return
    if not usable:
        print("Making the environment in .venv")
        base = getattr(sys, "_base_executable", None) or sys.executable  # never the one of .venv itself
        if not run(base, "-m", "venv", "--clear", VENV):
            raise Stop("No environment could be made; on Debian and Ubuntu: sudo apt install python3-venv")
    elif not stamp:
        print("Going on with the environment in .venv")
        run(PYTHON, "-c", MEND)
    with_tests = with_tests or bool(stamp.get("tests"))
    STAMP.unlink(missing_ok=True)
    install(with_tests)
    part = STAMP.with_suffix(".part")
    part.write_text(json.dumps({"fingerprint": wanted, "tests": with_tests}), encoding="utf-8")
    os.replace(str(part), str(STAMP))


def install(with_tests):
    pip = (PYTHON, "-m", "pip", "install", "-c", ROOT / "constraints.txt")
    torch = pinned("torch")
    if not list(VENV.glob(f"lib/python*/site-packages/torch-{torch}*.dist-info")):
        source = torch_source(platform.system(), has_nvidia_driver())
        if source == "cpu" and not run(*pip, "--no-deps", "--index-url", CPU_INDEX, f"torch=={torch}"):
            source = "big"
        if source == "big":
            print("PyTorch's own index of CPU builds is out of reach. pip now takes the build for GPUs,")
            print(f"{GPU_BUILD} to download, unless it finds another on this machine.")
    if not run(*pip, "-e", ".[test]" if with_tests else "."):
        raise Stop("The installation broke off: give the same command again and it goes on from there.")


def prepare_model():
    if not run(PYTHON, "-m", "helpers.models"):
        raise Stop("The model is not ready: the same command tries again; see `python course.py doctor`.")


# --- the lessons --------------------------------------------------------------------------------------------


def place(source, target):
    """Copy so that a cut leaves nothing half written."""
    part = target.with_name(target.name + ".part")
    shutil.copyfile(str(source), str(part))
    os.replace(str(part), str(target))


def copy_lessons(lessons=LESSONS, mine=MINE):
    """Copy each lesson that the learner does not have yet. Returns the names of the new ones."""
    mine.mkdir(exist_ok=True)
    new = [lesson for lesson in sorted(lessons.glob("*.ipynb")) if not (mine / lesson.name).exists()]
    for lesson in new:
        place(lesson, mine / lesson.name)
    return [lesson.name for lesson in new]


def fresh_copy(number, lessons=LESSONS, mine=MINE):
    """A new copy beside the older ones: 02_topic_2.ipynb, then 02_topic_3.ipynb. Returns its path."""
    number, found = str(number).zfill(2), sorted(lessons.glob("[0-9][0-9]_*.ipynb"))
    lesson = next((path for path in found if path.name.startswith(number + "_")), None)
    if lesson is None:
        there = ", ".join(path.name[:2] for path in found) or "none"
        raise Stop(f"There is no lesson {number}; those that are here: {there}.")
    count = 2
    while (mine / f"{lesson.stem}_{count}.ipynb").exists():
        count += 1
    place(lesson, mine / f"{lesson.stem}_{count}.ipynb")
    return mine / f"{lesson.stem}_{count}.ipynb"


def lab_command(page, port=None, browser=True, root=ROOT, windows=WINDOWS, home=None, superuser=False):
    """The command that opens JupyterLab at `page`, over the whole folder, so that helpers/ can be read."""
    where = f"/lab/tree/{page.relative_to(root).as_posix()}" if page else "/lab"
    command = [PYTHON, "-m", "jupyterlab", f"--ServerApp.root_dir={root}", f"--LabApp.default_url={where}"]
    command += ["--log-level=WARN"]
    # Then JupyterLab and its kernels talk through files under the home folder, not through open ports. The
    # system allows such a path about 100 letters.
    if not windows and len(home or str(Path.home())) <= 24:
        command += ["--KernelManager.transport=ipc"]
    command += [] if port is None else [f"--port={port}", "--ServerApp.port_retries=0"]
    return command + ([] if browser else ["--no-browser"]) + (["--allow-root"] if superuser else [])


def start(args):
    ensure_environment()
    prepare_model()
    new = copy_lessons()
    if new:
        print("Copied into my_lessons/: " + ", ".join(new))
    page = fresh_copy(args.fresh) if args.fresh else next(iter(sorted(MINE.glob("00_*.ipynb"))), None)
    print(f"JupyterLab opens {page.relative_to(ROOT).as_posix() if page else 'here'}. Ctrl-C here ends it.")
    paths = [str(ROOT), os.environ.get("JUPYTER_CONFIG_PATH")]  # our own for labconfig/
    env = child_env(JUPYTER_PREFER_ENV_PATH="1", JUPYTER_CONFIG_PATH=os.pathsep.join(filter(None, paths)))
    superuser = hasattr(os, "geteuid") and os.geteuid() == 0
    return become(lab_command(page, args.port, args.browser, superuser=superuser), env)


def test(args):
    began = time.time()
    ensure_environment(with_tests=True)
    prepare_model()
    print(f"Environment and model are ready after {time.time() - began:.0f} s. Now the tests.")
    env = child_env(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    env.setdefault("OMP_NUM_THREADS", "1")  # two workers of two threads each take twice as long
    nbval = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600", "--durations=30"]
    return become([PYTHON, "-m", "pytest", *nbval, "-n", "2", "--dist", "loadscope", *args.extra], env)


def build(args):
    ensure_environment(with_tests=True)
    prepare_model()
    return become([PYTHON, ROOT / "tools" / "build_lessons.py", *args.extra], child_env())


def bench(args):
    """The peers come into an environment of their own: they ask for other versions than learners need."""
    ensure_environment(with_tests=True)
    prepare_model()
    place = ROOT / ".venv-bench"
    python = place / PYTHON.relative_to(VENV)
    if not run(python, "-c", "import nnsight, transformer_lens"):
        print("Making an environment with the peers in .venv-bench")
        made = run(PYTHON, "-m", "venv", "--clear", place)
        pip = (python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", "-e", ".", *PEERS)
        if not made or not run(*pip):
            raise Stop("The peers could not be installed: give the same command again.")
    extra = args.extra or ["--out", ROOT / "bench"]
    if not args.extra and not run(PYTHON, "-W", "ignore", "-m", "tests.benchmarks.bench_growth", *extra):
        raise Stop("The benchmark of growth did not come to its end: see the lines above.")
    return become([python, "-W", "ignore", "-m", "tests.benchmarks.bench_peers", *extra], child_env(HF_HUB_OFFLINE="1"))


def book(args):
    ensure_environment()
    if not run(PYTHON, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", "-e", ".[book]"):
        raise Stop("What makes the book could not be installed: give the same command again.")
    if not run(PYTHON, "-m", "sphinx", "-q", "-b", "html", "-c", ROOT / "book", *args.extra, ROOT, ROOT / "_site"):
        raise Stop("The book could not be made: the lines above say where.")
    print("The book is in _site/: open _site/index.html.")
    return 0


# --- doctor -------------------------------------------------------------------------------------------------

PROBE = """
import importlib.metadata, json, sys
facts = {"versions": {}}
for name in sys.argv[1:]:
    try:
        facts["versions"][name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        facts["versions"][name] = None
try:
    import psutil, torch
    memory = psutil.virtual_memory()
    facts["memory"] = [memory.total / 2**30, memory.available / 2**30]
    gpu = "cuda: " + torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    facts["device"] = gpu or ("mps" if torch.backends.mps.is_available() else "cpu")
    from helpers.weights import cache_state
    state = cache_state(verify=True)
    facts["model"] = dict(vars(state), path=str(state.path))
except Exception as error:
    facts["error"] = type(error).__name__ + ": " + str(error)
print(json.dumps(facts))
"""


def gather():
    """What doctor looks at, as plain data."""
    facts = {
        "python": f"{platform.python_version()}, {platform.platform()}",
        "disk": shutil.disk_usage(str(ROOT)).free / 2**30,
        "venv": "ready" if is_ready(read_stamp(), fingerprint(), False) else "unfinished",
    }
    if version_of(PYTHON) != HERE:
        return dict(facts, venv="broken" if VENV.exists() else "missing")
    probe = [str(PYTHON), "-c", PROBE, *PACKAGES]
    done = subprocess.run(probe, cwd=str(ROOT), env=child_env(), capture_output=True, text=True)
    try:
        facts.update(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        facts["error"] = (done.stderr.splitlines() or ["Python in .venv broke off"])[-1]
    return facts


def diagnose(facts, pins):
    """Facts -> rows of (what, how it stands, one line of advice or None)."""
    again, anew = "give: python course.py", "delete the folder .venv and give: python course.py"
    ready = facts["venv"] == "ready"
    room = "make room: environment and model take 4 GB" if facts["disk"] < (1 if ready else 4) else None
    rows = [("Python", facts["python"], None), ("free disk", f"{facts['disk']:.1f} GB", room)]
    rows.append((".venv", facts["venv"], None if ready else again))
    if facts["venv"] in ("missing", "broken"):
        return rows
    for name, version in facts.get("versions", {}).items():
        right = version is not None and version.split("+")[0] == pins[name]
        rows.append((name, version or "missing", None if right else f"{pins[name]} is tested: {anew}"))
    if "memory" in facts:
        total, free = facts["memory"]
        few = "close other programs: a lesson needs about 2 GB" if free < 2 else None
        rows.append(("memory", f"{total:.1f} GB, {free:.1f} GB of it free", few))
    if "device" in facts:
        rows.append(("device", facts["device"], None))
    if "error" in facts:
        rows.append(("import", facts["error"], anew))
    if "model" in facts:
        model = facts["model"]
        state = f"{model['size'] / 1e6:.0f} MB" if model["ready"] else "no whole model in it"
        rows.append(("cache", f"{model['path']} ({state})", None if model["ready"] else again))
        if model["ready"]:
            rows.append(("model hash", model["hash"], model["problem"]))
    return rows


def doctor(_args):
    rows = diagnose(gather(), {name: pinned(name) for name in PACKAGES})
    for what, how, advice in rows:
        print(f"{'!!' if advice else 'ok':3} {what:13} {how}" + (f"\n{'':17} -> {advice}" if advice else ""))
    wrong = sum(advice is not None for _, _, advice in rows)
    print(f"To mend: {wrong}." if wrong else "All is well.")
    return 1 if wrong else 0


def main(argv=None):
    args = parse(sys.argv[1:] if argv is None else argv)
    problem = why_not_here(sys.version_info, platform.system(), platform.machine(), platform.mac_ver()[0])
    try:
        if problem:
            raise Stop(problem)
        return {"start": start, "test": test, "build": build, "bench": bench, "book": book, "doctor": doctor}[
            args.command
        ](args)
    except Stop as stop:
        print(stop)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
