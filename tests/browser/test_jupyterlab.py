"""A stranger in JupyterLab, in Debian's Chromium: open 00_AutoQuant, Run All, change the form, run
on; stop a run; a # @param cell as a form.

Screenshots go to browser-output/ (CI keeps them). Needs `make browser`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

from autoquant.notebook import forms
from tests.notebooks.running import FOLDER, ROOT, environment

CHROMIUM = shutil.which("chromium")
PORT = 18917 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
SHOTS = ROOT / "browser-output"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        CHROMIUM is None and "CI" not in os.environ, reason="no Chromium here: make browser"
    ),
]
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


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A JupyterLab of its own whose root is a folder with the notebooks, beside nothing else."""
    root, home = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")
    for path in FOLDER.glob("*.ipynb"):
        shutil.copy(path, root / path.name)
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
        try:
            return bool(rest("status"))
        except OSError:
            return False

    try:
        wait(up, 60, "JupyterLab")
        yield root
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    SHOTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")),
            executable_path=CHROMIUM or "chromium",
            headless=True,
            viewport={"width": 1360, "height": 1000},
            args=ARGUMENTS,
        )
        yield context
        context.close()


def opened(browser: Any, name: str) -> Any:
    """A notebook's page whose kernel is connected and idle (the indicator says so too early)."""
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{PORT}/lab/tree/{name}?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)

    def idle() -> bool:
        return any(
            one["path"] == name
            and one["kernel"]["connections"] >= 1
            and one["kernel"]["execution_state"] == "idle"
            for one in rest("sessions")
        )

    wait(idle, 60, "the kernel")
    page.keyboard.press("Control+b")  # the side bar away
    return page


def notebook_of(*sources: str) -> Any:
    """A notebook that JupyterLab opens without asking for a kernel."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources], metadata=kernel
    )


def menu(page: Any, *names: str) -> None:
    for i, name in enumerate(names):
        (
            page.get_by_role("menuitem", name=name, exact=True)
            if i == 0
            else page.get_by_text(name, exact=True)
        ).first.click()


def cell_with(page: Any, text: str) -> Any:
    return page.locator(".jp-CodeCell").filter(has_text=text).first


def test_a_stranger_runs_all_and_then_changes_the_form(lab: Path, browser: Any) -> None:
    page = opened(browser, "00_AutoQuant.ipynb")
    menu(page, "Run", "Run All Cells")
    page.wait_for_selector("text=the values are valid", timeout=90_000)
    page.locator(
        ".jp-OutputArea-output", has_text=re.compile(r"Nothing is uploaded\. To upload")
    ).last.wait_for(timeout=240_000)
    results = page.locator(".jp-OutputArea-output table").filter(has_text="KL mean").first
    assert "Q8_0" in results.inner_text(), "no method was named: what is best for this machine"
    assert (
        not page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']")
        .filter(has_text="Traceback")
        .count()
    )
    files = page.locator(".jp-OutputArea-output").filter(has_text="llama-server -m ").first
    assert str(lab / "tiny-austen-4m-GGUF") in files.inner_text()
    page.locator(".jp-OutputArea-output").filter(has_text="unquantized").filter(
        has_text="Prompt:"
    ).first.wait_for(timeout=10_000)
    form = page.locator(".jp-OutputArea-output").filter(has_text="the values are valid").first
    form.evaluate("element => element.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(800)
    page.screenshot(path=str(SHOTS / "00-form.png"))

    # "a file for my 8 GB laptop"
    page.get_by_label("model", exact=True).fill("demo")
    page.get_by_label("model", exact=True).press("Enter")
    form.locator("text=4 million weights").wait_for(timeout=20_000)
    page.get_by_label("device", exact=True).fill("8GB laptop")
    page.get_by_role("button", name="What fits there?").click()
    form.locator("text=take gguf Q8_0").wait_for(timeout=60_000)
    page.screenshot(path=str(SHOTS / "00-fits.png"))
    row = form.locator(".widget-hbox").filter(has=page.get_by_text("Q5_K_M", exact=True)).last
    row.get_by_role("checkbox").check()
    field = page.get_by_label("gguf_types", exact=True)
    field.wait_for(timeout=10_000)
    assert field.input_value() == "Q5_K_M", "ticked"

    # and a mistake
    field.fill("Q4_K_X")
    beside = page.locator(".widget-hbox").filter(has=page.get_by_label("gguf_types", exact=True))
    alert = beside.locator("[role=alert]").last
    alert.wait_for(timeout=10_000)
    assert "'Q4_K_X' is no GGUF type" in alert.inner_text(), "beside the field"
    page.screenshot(path=str(SHOTS / "00-mistake.png"))
    field.fill("Q8_0; q5_k_m q2_k")
    page.wait_for_selector("text=the values are valid", timeout=10_000)
    page.get_by_role("button", name="Will it fit?").click()
    form.locator("text=it fits").wait_for(timeout=60_000)
    page.screenshot(path=str(SHOTS / "00-changed.png"))

    cell_with(page, "autoquant.plan(method").locator(".jp-InputArea-editor").click()
    menu(page, "Run", "Run Selected Cell and All Below")
    wanted = (
        page.locator(".jp-OutputArea-output table")
        .filter(has_text="KL mean")
        .filter(has_text="Q2_K")
    )
    wanted.first.wait_for(timeout=180_000)
    assert "Q5_K_M" in wanted.first.inner_text()
    plot = page.locator(".jp-OutputArea-output img[alt^='Size on the x axes']").first
    assert plot.is_visible()
    assert sorted(path.name for path in (lab / "tiny-austen-4m-GGUF").glob("*.gguf")) == [
        f"tiny-austen-4m-{name}.gguf" for name in ("Q2_K", "Q5_K_M", "Q8_0")
    ]
    wanted.first.scroll_into_view_if_needed()
    page.wait_for_timeout(800)
    page.screenshot(path=str(SHOTS / "00-results.png"))
    page.close()


def workers() -> list[psutil.Process]:
    """The worker processes below this one: forked from a preloaded process."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if (parent := child.parent()) and "autoquant.runtime.forking" in parent.cmdline()
    ]


def test_stop_is_heard_while_a_cell_runs_and_running_again_goes_on(lab: Path, browser: Any) -> None:
    notebook = notebook_of(
        "import autoquant\nfrom autoquant.notebook import forms",
        "with forms.stoppable():\n    result = autoquant.awq('demo', calibration_samples=32,"
        " iterations=400, evaluate='off')\nresult",
    )
    nbformat.write(notebook, lab / "stop.ipynb")
    page = opened(browser, "stop.ipynb")
    menu(page, "Run", "Run All Cells")
    page.locator(".jp-OutputArea-output", has_text="quantize 4bit").first.wait_for(timeout=60_000)
    assert workers()
    started = time.monotonic()
    page.screenshot(path=str(SHOTS / "stop.png"))
    page.locator("button.jupyter-button", has_text="Stop").last.click()
    page.locator(".jp-OutputArea-output", has_text="finished files are kept").first.wait_for(
        timeout=30_000
    )
    assert time.monotonic() - started < 15
    said = page.locator(
        ".jp-OutputArea-output", has_text="finished files are kept"
    ).first.inner_text()
    assert re.fullmatch(
        r"Stopped: finished files are kept; run this cell again to resume",
        said.strip(),
    )
    assert workers() == [], "nobody goes on working"
    page.screenshot(path=str(SHOTS / "stop.png"))
    page.close()


def test_the_form_cell_is_a_form_for_others_too(lab: Path, browser: Any) -> None:
    """ipyform draws Colab's # @param cells in JupyterLab: it stands here for Colab's page."""
    notebook = notebook_of(
        "%load_ext ipyform",
        "%%form\n" + forms.cell("gptq"),
        "%%form\n" + forms.more("gptq"),
        "print('bits are', bits, 'and', calibration_samples, sym)",
    )
    nbformat.write(notebook, lab / "param.ipynb")
    page = opened(browser, "param.ipynb")
    menu(page, "Run", "Run All Cells")
    page.locator(".jp-OutputArea-output", has_text="bits are 4 and 128 True").first.wait_for(
        timeout=60_000
    )
    page.screenshot(path=str(SHOTS / "param.png"))
    page.get_by_label("bits", exact=True).select_option(label="8")
    page.wait_for_timeout(500)
    cell_with(page, "bits are").locator(".jp-InputArea-editor").click()
    menu(page, "Run", "Run Selected Cell")
    page.locator(".jp-OutputArea-output", has_text="bits are 8 and 128 True").first.wait_for(
        timeout=30_000
    )
    page.screenshot(path=str(SHOTS / "param.png"))
    page.close()
