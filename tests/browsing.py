"""What the browser tests share: a JupyterLab of their own, a notebook opened in it, and what a learner does there."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
IDLE = "#jp-main-statusbar :text('| Idle')"  # of the kernel, as the page knows it: cells sent before are dropped without a word
SECONDS = 90_000  # how long a step may take, in ms: the machine may be busy


@contextmanager
def running_lab(folder: Path, home: Path, **settings: str) -> Iterator[str]:
    """A JupyterLab over a folder; its address. settings: of the kernels' environment."""
    pytest.importorskip("jupyterlab")
    env = {key: value for key, value in os.environ.items() if key not in ("COURSE_PROGRESS", "COURSE_STRICT")}
    env |= {"PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_PATH": str(ROOT), **settings}
    env |= {"JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_DATA_DIR": str(home / "data")}
    env |= {"JUPYTER_RUNTIME_DIR": str(home / "runtime"), "IPYTHONDIR": str(home / "ipython")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=0"]
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    log = open(home / "log", "wb")
    server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address + "/api/status", server, home / "log")
        yield address
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()
        shutil.rmtree(home / "runtime", ignore_errors=True)


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    end = time.time() + 90
    while time.time() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail("JupyterLab did not start:\n" + log.read_text(errors="replace")[-2000:])


def opened(view, address: str, name: str, cells: int):
    """The page with a notebook opened, its kernel idle, and all its cells there."""
    view.goto(f"{address}/lab/tree/{name}?reset")
    view.wait_for_selector(IDLE)
    view.wait_for_function(f"document.querySelectorAll('.jp-Notebook .jp-Cell').length === {cells}")
    return view


def menu(page, name: str, command: str) -> None:
    page.click(f".lm-MenuBar-itemLabel:text-is('{name}')")
    page.click(f"li[data-command='{command}']")


def run_all(page, until: str, wait: int = SECONDS) -> None:
    """Run All, until a quiz with these words has come and the kernel is idle. wait: for the last cell, in ms."""
    menu(page, "Run", "runmenu:run-all")
    page.wait_for_function(
        "/\\[\\d+\\]/.test([...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].at(-1).textContent)",
        timeout=wait,
    )
    page.wait_for_selector(IDLE)
    page.wait_for_selector(f".course-quiz :text({until!r})")


def restart_kernel(page) -> None:
    menu(page, "Kernel", "kernelmenu:restart")
    page.click(".jp-Dialog button.jp-mod-accept")
    page.wait_for_selector(".jp-Dialog", state="detached")
    page.wait_for_selector(IDLE)


def focused(page) -> str:
    return page.evaluate("document.activeElement.type || document.activeElement.tagName")


def tab_to(page, target, presses: int = 40) -> None:
    for _ in range(presses):
        if target.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{presses} presses of Tab do not reach it; the focus is on {focused(page)}")
