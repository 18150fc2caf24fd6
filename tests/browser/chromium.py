"""Find a Chromium for the browser tests, or install one: ``python tests/browser/chromium.py`` prints its path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """The path of a Chromium that can be launched, or None."""
    chosen = os.environ.get("SAELAB_CHROMIUM")
    if chosen:
        return shutil.which(chosen)
    for name in NAMES:
        if path := shutil.which(name):
            return path
    return _playwright_chromium()


def root_flags() -> list[str]:
    """Chromium's sandbox does not start as root."""
    return ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []


def _playwright_chromium() -> str | None:
    # In a separate process: only one Playwright driver can run at a time, and a test may hold it.
    script = "from playwright.sync_api import sync_playwright as p\nwith p() as pw: print(pw.chromium.executable_path)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", check=False)
    path = result.stdout.strip()
    return path if result.returncode == 0 and Path(path).is_file() else None


def ensure_chromium() -> str:
    """The path of a Chromium, installed first if there is none."""
    if path := find_chromium():
        return path
    if chosen := os.environ.get("SAELAB_CHROMIUM"):
        raise RuntimeError(f"SAELAB_CHROMIUM is set to {chosen!r}, which isn't a program that can be run.")
    if hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        commands = [["apt-get", "update"], ["apt-get", "install", "-y", "chromium"]]
    else:
        commands = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    for command in commands:
        # Their output goes to stderr, because stdout is only for the path.
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
            raise RuntimeError(
                f"No Chromium was found, and installing one failed at `{' '.join(command)}`. "
                "Install Chromium or Chrome yourself, or set SAELAB_CHROMIUM to its path."
            )
    if path := find_chromium():
        return path
    raise RuntimeError("Chromium was installed but can't be found: set SAELAB_CHROMIUM to its path.")


if __name__ == "__main__":
    try:
        print(ensure_chromium())
    except RuntimeError as error:
        sys.exit(str(error))
