"""For all tests, the notebooks among them, whose kernels inherit this environment."""

import os
from pathlib import Path

import pytest

NO_NETWORK = str(Path(__file__).parent / "tests" / "no_network")
MODULES = os.environ.get("PYTHONPATH")

os.environ.setdefault("COURSE_PROGRESS", "off")  # a test run leaves no learner's progress behind
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


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
