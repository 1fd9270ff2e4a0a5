"""For all tests, the notebooks among them, whose kernels inherit this environment."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
NO_NETWORK = str(ROOT / "tests" / "no_network")
SHORT = ("00", "08")  # lessons whose solutions run in every test run
MODULES = os.environ.get("PYTHONPATH")

os.environ.setdefault("COURSE_PROGRESS", "off")  # a test run leaves no learner's progress behind
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_ignore_collect(collection_path, config):
    """Most solutions are left to the scheduled run (COURSE_SCHEDULED=1), and to whoever names them: all together take half an hour.

    They were run when they were built, and tests/test_build.py is red if anything that they use has changed since. The untouched
    lessons, which make the same computations with the course's version of each exercise, run every time.
    """
    if collection_path.suffix != ".ipynb" or collection_path.parent != ROOT / "solutions":
        return None
    given = [] if list(config.args) == config.getini("testpaths") else config.args
    named = any(Path(argument).resolve() in (collection_path, collection_path.parent) for argument in given)
    wanted = named or os.environ.get("COURSE_SCHEDULED") or collection_path.stem[:2] in SHORT
    return None if wanted else True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """In a solution a check that fails must raise; in a lesson, whose exercises are open, it must not. Notebooks run without a network.

    Set before a notebook's kernel starts: nbval starts it in the set-up of the notebook's first cell.
    """
    os.environ.pop("COURSE_STRICT", None)
    if item.path.suffix == ".ipynb" and item.path.parent.name == "solutions":
        os.environ["COURSE_STRICT"] = "1"
    if item.path.suffix == ".ipynb":
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [NO_NETWORK, MODULES]))
    elif MODULES is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = MODULES
