"""git in a test's own folder, under a name that needs no configuration."""

import subprocess
from pathlib import Path

WHO = ("-c", "user.name=course", "-c", "user.email=course@example.org", "-c", "init.defaultBranch=main")


def git(folder: Path, *arguments: str) -> str:
    """Run git there and return what it printed. Raises CalledProcessError if it fails."""
    done = subprocess.run(["git", *WHO, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout
