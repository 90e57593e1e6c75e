"""A stranger in JupyterLab, in Debian's Chromium: open 00_AutoQuant, Run All, change the form, run
on; stop a run; a # @param cell as a form; what axe-core says of the pages.

Screenshots go to browser-output/ (CI keeps them). Needs `make browser`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

from autoquant.notebook import forms
from tests.browser.lab import CHROMIUM, SHOTS, cell_with, chromium, menu, opened, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        CHROMIUM is None and "CI" not in os.environ, reason="no Chromium here: make browser"
    ),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a JupyterLab of its own."""
    with serving(tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")) as root:
        yield root


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as context:
        yield context


def serious(page: Any) -> list[str]:
    """What axe-core finds of weight in what the notebook shows: its texts, and what its cells have
    put out, forms included. JupyterLab's own bars are not ours.
    """
    from axe_playwright_python.sync_playwright import Axe

    where = {"include": [[".jp-RenderedMarkdown"], [".jp-OutputArea-output"]]}
    found = Axe().run(page, context=where).response["violations"]
    return [
        f"{one['id']}: {node['html'][:200]} ({node['failureSummary'][:300]})"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def notebook_of(*sources: str) -> Any:
    """A notebook that JupyterLab opens without asking for a kernel."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources], metadata=kernel
    )


def test_a_stranger_runs_all_and_then_changes_the_form(lab: Path, browser: Any) -> None:
    page = opened(browser, "00_AutoQuant.ipynb")
    menu(page, "Run", "Run All Cells")
    page.wait_for_selector("text=the values are valid", timeout=90_000)
    page.locator(
        ".jp-OutputArea-output", has_text=re.compile(r"Nothing is uploaded\. Enter owner")
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
    form.locator("text=More options").first.click()
    page.get_by_label("eval_chunks", exact=True).wait_for(timeout=10_000)
    assert serious(page) == []
    form.locator("text=More options").first.click()
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

    page.get_by_label("prompt", exact=True).fill("Elizabeth went to")
    cell_with(page, "forms.Plans(").locator(".jp-InputArea-editor").click()
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
        "imatrix.gguf",  # a type that is better with one was ticked
        *(f"tiny-austen-4m-{name}.gguf" for name in ("Q2_K", "Q5_K_M", "Q8_0")),
    ]
    said = page.locator(".jp-OutputArea-output").filter(has_text="Prompt: Elizabeth went to")
    said.filter(has_text="Q5_K_M").first.wait_for(timeout=60_000)
    assert serious(page) == []
    wanted.first.scroll_into_view_if_needed()
    page.wait_for_timeout(800)
    page.screenshot(path=str(SHOTS / "00-results.png"))
    page.close()


def test_the_lesson_can_be_read_by_a_screen_reader(lab: Path, browser: Any) -> None:
    page = opened(browser, "01_Introduction_to_Quantization.ipynb")
    menu(page, "Run", "Run All Cells")
    page.locator(".jp-OutputArea-output", has_text="is not answered yet").nth(7).wait_for(
        timeout=180_000
    )
    assert serious(page) == []
    page.evaluate(
        "document.querySelector('.jp-OutputArea-output').append(document.createElement('img'))"
    )
    (found,) = serious(page)
    assert found.startswith("image-alt"), "an image that nobody describes is found"
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
