"""JupyterLab on a folder with the notebooks, and Debian's Chromium on it: for the tests here and
for ``tools/screenshots.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.notebooks.running import FOLDER, ROOT, environment

CHROMIUM = shutil.which("chromium")
PORT = 18917 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
SHOTS = ROOT / "browser-output"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def rest(path: str) -> Any:
    return json.load(urllib.request.urlopen(f"http://127.0.0.1:{PORT}/api/{path}", timeout=5))


def wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.3)
    raise AssertionError(f"{what}: not within {seconds} s")


@contextlib.contextmanager
def serving(root: Path, home: Path) -> Iterator[Path]:
    """A JupyterLab of its own on a folder with the notebooks and the pictures with which they
    begin, beside nothing else. Yields the notebooks' folder.
    """
    notebooks, pictures = root / "notebooks", Path("docs") / "images"
    notebooks.mkdir()
    shutil.copytree(ROOT / pictures, root / pictures)
    for path in (*FOLDER.glob("*.ipynb"), *FOLDER.glob("??/*.ipynb")):
        copy = notebooks / path.relative_to(FOLDER)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    for name, values in {
        "apputils-extension/notification": {"fetchNews": "false"},
        "notebook-extension/tracker": {"windowingMode": "none"},
    }.items():
        settings = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(values))
    env = {
        **os.environ,
        **environment(home / "cache", colab=False),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "HOME": str(home),
    }
    words = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={PORT}",
        "--port-retries=0",
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        "--ServerApp.disable_check_xsrf=True",
        "--allow-root",
        f"--ServerApp.root_dir={root}",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
    ]
    with open(home / "log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(words, env=env, stdout=log, stderr=subprocess.STDOUT)

    def up() -> bool:
        if server.poll() is not None:  # else one that was left over on this port would answer
            raise AssertionError(f"JupyterLab ended: {(home / 'log').read_text()[-2000:]}")
        try:
            return bool(rest("status"))
        except OSError:
            return False

    try:
        wait(up, 60, "JupyterLab")
        yield notebooks
    finally:
        server.terminate()
        server.wait(20)


@contextlib.contextmanager
def chromium(profile: Path, width: int = 1360) -> Iterator[Any]:
    """A browser whose windows are so many pixels wide."""
    from playwright.sync_api import sync_playwright

    SHOTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile),
            executable_path=CHROMIUM or "chromium",
            headless=True,
            viewport={"width": width, "height": 1000},
            args=ARGUMENTS,
        )
        yield context
        context.close()


def opened(browser: Any, name: str) -> Any:
    """A notebook's page whose kernel is connected and idle (the indicator says so too early)."""
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{PORT}/lab/tree/notebooks/{name}?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)

    def idle() -> bool:
        return any(
            one["path"] == f"notebooks/{name}"
            and one["kernel"]["connections"] >= 1
            and one["kernel"]["execution_state"] == "idle"
            for one in rest("sessions")
        )

    wait(idle, 60, "the kernel")
    page.keyboard.press("Control+b")  # the side bar away
    return page


def menu(page: Any, *names: str) -> None:
    for i, name in enumerate(names):
        (
            page.get_by_role("menuitem", name=name, exact=True)
            if i == 0
            else page.get_by_text(name, exact=True)
        ).first.click()


def cell_with(page: Any, text: str) -> Any:
    return page.locator(".jp-CodeCell").filter(has_text=text).first
