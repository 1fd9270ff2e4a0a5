"""What several test modules share."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from browsing import OFFLINE, SECONDS

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
ELSEWHERE = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)


def find_chromium() -> str | None:
    """A Chromium of this machine's own: $COURSE_CHROMIUM, one on the PATH, or one where installers put it."""
    named = os.environ.get("COURSE_CHROMIUM")
    if named:
        return named if Path(named).exists() else None
    on_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    return on_path or next((place for place in ELSEWHERE if Path(place).exists()), None)


@pytest.fixture(scope="session")
def root() -> Path:
    """The course's folder."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium, for tests marked `browser`; they are skipped where there is none."""
    found = find_chromium()
    if found is None:
        pytest.skip("no Chromium or Chrome on this machine (Debian: sudo apt install chromium)")
    return found


@pytest.fixture(scope="module")
def browser(chromium):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as play:
        flags = [OFFLINE, "--no-sandbox"] if sys.platform == "linux" else [OFFLINE]
        opened = play.chromium.launch(executable_path=chromium, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def view(browser, tmp_path):
    """An empty page; what the browser complains about is collected in `view.complaints`."""
    view = browser.new_page(viewport={"width": 1200, "height": 1600})
    view.set_default_timeout(SECONDS)
    view.complaints = []
    view.on("console", lambda message: message.type == "error" and view.complaints.append(message.text))
    view.on("pageerror", lambda error: view.complaints.append(str(error)))
    yield view
    view.screenshot(path=tmp_path / "end.png")
    view.close()
