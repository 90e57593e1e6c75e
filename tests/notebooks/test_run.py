"""Every notebook from top to bottom in a kernel, without a network and a GPU: as Jupyter, and
(AUTOQUANT_GUISE=colab, in .venv-colab) as Colab.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from autoquant.core import language as languages
from autoquant.core.language import say
from tests.conftest import STAND_IN
from tests.notebooks.running import FOLDER, environment, run, shown

COLAB = os.environ.get("AUTOQUANT_GUISE") == "colab"
# 02's defaults are run by test_papermill_runs_and_validates, in Jupyter
QUICK: dict[str, dict[str, Any]] = {
    "02_GGUF_llama_cpp": {
        "imatrix": "calibration",
        "calibration_samples": 16,
        "compare": "Q6_K,Q2_K",
    },
    "03_GPTQ": {"calibration_samples": 8, "calibration_length": 64, "compare": "2"},
    "04_EXL2": {
        "make_exl3": True,
        "calibration": "builtin",
        "calibration_samples": 4,
        "calibration_length": 64,
        "measurement_samples": 2,
        "compare": "3.0",
        "eval_chunks": 4,
    },
    "05_AWQ": {
        "calibration_samples": 8,
        "calibration_length": 64,
        "iterations": 4,
        "eval_chunks": 4,
    },
    "06_HQQ_and_more": {"compare": "3,nf4,fp8-dynamic", "eval_chunks": 4},
    "07_Compare": {"calibration_samples": 8, "gptq_bits": "4", "eval_chunks": 4, "out": "compared"},
}
BESIDE = {
    "02_GGUF_llama_cpp": ["Q6_K", "Q2_K"],
    "03_GPTQ": ["2bit-128g"],
    "04_EXL2": ["3.0bpw"],
    "05_AWQ": [">autoround<", ">awq<"],
    "06_HQQ_and_more": ["HQQ 3 bits", "NF4", "W8A8 FP8"],
}
# what is made beside a run is the same cell in both guises; the longest two make it in Jupyter only
if COLAB:
    for name in ("04_EXL2", "06_HQQ_and_more"):
        QUICK[name]["compare"] = ""
        del BESIDE[name]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks-cache")


def cells(notebook: Any) -> dict[str, str]:
    return {cell.id: shown(cell) for cell in notebook.cells if cell.cell_type == "code"}


def start(name: str, tmp_path: Path, cache: Path, **parameters: Any) -> dict[str, str]:
    return cells(
        run(
            FOLDER / f"{name}.ipynb",
            tmp_path / "work",
            environment(cache, colab=COLAB),
            {**QUICK.get(name, {}), **parameters},
        )
    )


@pytest.mark.parametrize(
    "name",
    [
        "00_AutoQuant",
        "02_GGUF_llama_cpp",
        "03_GPTQ",
        "04_EXL2",
        "05_AWQ",
        "06_HQQ_and_more",
        "07_Compare",
    ],
)
def test_run_all_ends_well_without_network_and_gpu(
    name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "04_EXL2":  # which needs a GPU: the stand-in
        monkeypatch.setenv("PYTHONPATH", STAND_IN)
    said = start(name, tmp_path, cache)
    assert "is ready" in said["install"]
    assert "Continuing with the " in said["plan"], "said where it happens"
    assert "it fits" in said["plan"]
    assert "tiny-austen" in said["run"]
    assert "tiny-austen" in said["look"]
    assert "KL mean" in said["run"]
    assert re.search(r"generates.*different", said["check"])
    assert "relative error 0." in said["look"]
    assert "data:image/png;base64," in said["look"]
    assert "# tiny-austen-4m: " in said["card"]
    assert "Nothing is uploaded" in said["upload"]
    if name == "07_Compare":
        assert "all of it fits" in said["plan"]
        for what in (">GPTQ</td>", ">tiny-austen-2m</td>", ">tiny-austen-4m</td>"):
            assert what in said["plan"], "both models as GGUF, the larger one by GPTQ: one table"
        for one in ("run", "equal"):
            assert "GGUF files were measured by their weights" in said[one], "by one engine"
            assert "run by</th>" not in said[one]
        assert "tiny-austen-2m against tiny-austen-4m, in the same memory" in said["answer"]
        rows = [line for line in said["answer"].splitlines() if " MB " in line]
        found = [line for line in rows if " ± " in line]
        assert len(found) >= 2
        assert "the larger model is better in" in said["answer"]
        verdict = r"(no difference beyond chance|the (smaller|larger) model is better)"
        assert all(
            re.search(rf"\w+ +\w+ +[+-]\d\.\d+ ± \d\.\d+ +[+-]\d+\.\d +{verdict}$", line)
            for line in found
        )
        assert sorted(one.name for one in (tmp_path / "work" / "compared").iterdir()) == [
            "tiny-austen-2m-GGUF",
            "tiny-austen-4m-GGUF",
            "tiny-austen-4m-GPTQ-4bit-128g",
        ]
        assert "tiny-austen-2m" in said["equal"]
        assert "data:image/png;base64," in said["equal"]
    if name in ("02_GGUF_llama_cpp", "03_GPTQ", "04_EXL2", "05_AWQ", "06_HQQ_and_more"):
        assert said["size"].count("tiny-austen-4m") >= 1
        assert all(kind in said["size"] for kind in BESIDE.get(name, ())), (
            "what it made beside the run"
        )
        alone = QUICK[name].get("compare") == ""
        assert ("data:image/png;base64," in said["size"]) is not alone, (
            "the plot beside the table, where there is more than one file"
        )
    if name == "04_EXL2":
        assert "Figure" in said["exl3-picture"]
        assert "it fits" in said["exl3-plan"]
        assert "EXL3" in said["exl3"]
        assert said["exl3"].count("4.0bpw") >= 2, "the same bitrate of both"
        assert "main.py is TabbyAPI" in said["exl3-files"]
        assert "4.0bpw" in said["exl3-try"]
        assert re.search(r"generates.*different", said["exl3-check"])
        assert (tmp_path / "work" / "tiny-austen-4m-EXL2-as-EXL3" / "4.0bpw").is_dir()
    if name == "02_GGUF_llama_cpp":
        assert "less KL divergence than Q3_K_M" in said["best"], "what the choice gains"
        assert "data:image/png;base64," in said["best"]
        assert "suffers most" in said["best"]
        assert "ffn_down" in said["best"]
    assert ("VBox" in said["form"]) is not COLAB, (
        "widgets in Jupyter; in Colab the parameters cell is the form"
    )
    if COLAB:
        assert "Change them in the form above" in said["form"]
    if name == "00_AutoQuant":
        assert "tiny-austen-4m on" in said["plan"], "no method was named: what is best, and why"
        assert "gguf Q8_0" in said["plan"]
        assert str(tmp_path / "work" / "tiny-austen-4m-GGUF") in said["files"]
        assert "llama-server -m " in said["files"]
        assert "unquantized" in said["try"]
        assert "Q8_0" in said["try"]


def test_exl2_without_a_gpu_shows_the_sizes_and_says_what_to_do(
    tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(CellExecutionError) as stopped:
        start("04_EXL2", tmp_path, cache)
    assert "InputError: exl2: exllamav2 quantizes on an NVIDIA" in str(stopped.value)
    assert "site-packages" not in str(stopped.value).split("InputError")[-1], "a line, no traceback"


@pytest.mark.parametrize("language", ["en", "tr"])
def test_the_lesson(language: str, tmp_path: Path, cache: Path) -> None:
    """In English and in Turkish: the same code, whose words come from one table."""
    folder = "" if language == "en" else f"{language}/"
    started = time.monotonic()
    said = start(f"{folder}01_Introduction_to_Quantization", tmp_path, cache)
    assert time.monotonic() - started < 120, "under a minute on two cores (bench/lesson.py)"
    assert len(said["load"].strip().splitlines()) == 1, "no warnings of libraries"
    languages.use(language)
    try:
        exercises = [said[f"ex{i}"] for i in range(1, 9)]
        assert [one.split()[0] for one in exercises] == ["…"] * 8
        assert all(
            say("exercise {name} is not answered yet").split("}")[1] in one for one in exercises
        )
        assert "ready" in said["install"] or language == "tr"
        assert say("bits per weight") in said["scales"]
        assert "data:image/svg+xml;base64," in said["memory"] + said["line"], "without a kernel"
        assert "widget" not in said["memory"] + said["line"]
        wrote = said["writes"].strip().splitlines()
        assert [line.split(":")[0].strip() for line in wrote[:5]] == [
            say("unquantized"),
            *(say("{n} bits", n=n) for n in (8, 4, 3, 2)),
        ]
        table = [line for line in said["budget"].splitlines() if line.strip()]
        assert len(table) == 10, "8 parts, a head and the budget"
        assert say("layers 0 and 1 at 3 bits") in said["spent"]
        unquantized_row = say("unquantized")
        schemes = [say(f"absmax, {one}") for one in ("tensor", "row", "128", "32")]
        schemes.append(say("zero point, 128"))
    finally:
        languages.use("en")
    assert "BF16" in said["floats"]
    errors = [float(line.split()[-2]) for line in said["scales"].splitlines()[1:] if line.strip()]
    assert errors == sorted(errors, reverse=True), (
        "the fewer weights share a scale, the smaller the error"
    )
    rounded, calibrated = (
        float(value) for value in re.findall(r"([\d.]+)$", said["calibration"], re.MULTILINE)
    )
    assert calibrated < 0.9 * rounded, "on text that was not calibrated on"
    rows = {
        line[:18].strip(): [float(value) for value in line[18:].split()]
        for line in said["schemes"].splitlines()
        if "," in line[:18]
    }
    assert list(rows) == schemes
    scales = [row.pop() for row in rows.values()]
    assert scales == [0, 0.05, 0.12, 0.5, 0.16], "bits for each weight"
    formats = {
        name: float(value)
        for name, value in re.findall(
            r"^(BF16|FP8 E4M3|FP8 E5M2) +([\d.]+)$", said["perplexity"], re.MULTILINE
        )
    }
    whole, by_row, by_bits, by_few, zero_point = rows.values()
    found = re.search(unquantized_row + r" +([\d.]+)", said["perplexity"])
    assert found
    unquantized = float(found[1])
    assert formats["BF16"] == pytest.approx(unquantized, rel=0.002)
    assert formats["FP8 E4M3"] == pytest.approx(unquantized, rel=0.02)
    assert formats["FP8 E5M2"] == pytest.approx(unquantized, rel=0.05)
    assert len(by_bits) == 6
    assert by_bits[0] == pytest.approx(unquantized, rel=0.01)
    assert by_bits[-1] > 2 * unquantized
    for at in (3, 4, 5):  # 4, 3 and 2 bits
        few = [row[at] for row in (whole, by_row, by_bits, by_few)]
        assert few == sorted(few, reverse=True), "the fewer weights share a scale, the better"
        assert zero_point[at] < by_bits[at]
    changes = [[row[at] / unquantized - 1 for row in rows.values()] for at in range(6)]
    assert max(map(max, changes[:3])) < 0.015, "about 1 % or less down to 5 bits"
    for change, least, most in zip(
        changes[3:], (0.005, 0.045, 0.42), (0.06, 0.69, 67), strict=True
    ):
        assert least < min(change) < max(change) < most, "as the text says"
    mean, error = map(float, re.findall(r"4M − 2M +([+-][\d.]+) ± ([\d.]+)", said["paired"])[0])
    assert mean / error > 2, "the larger model is better"
    z_scores = [float(one) for one in re.findall(r"(?:z-score|z skoru) (-?[\d.]+)", said["paired"])]
    assert z_scores == [pytest.approx(2.4, abs=0.1), pytest.approx(3.9, abs=0.2)], (
        "as the text says"
    )
    own = [float(one) for one in re.findall(r"^[24]M  .* ± ([\d.]+)", said["paired"], re.MULTILINE)]
    assert mean < sum(own), "which the errors of the two, apart, do not tell"


@pytest.mark.skipif(COLAB, reason="papermill runs notebooks on one's own machine")
def test_papermill_runs_and_validates(tmp_path: Path, cache: Path) -> None:
    env = {**os.environ, **environment(cache, colab=COLAB)}

    def papermill(*words: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "papermill",
            str(FOLDER / "02_GGUF_llama_cpp.ipynb"),
            str(tmp_path / "out.ipynb"),
            "--cwd",
            str(tmp_path),
            *words,
        ]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    good = papermill("-p", "model", "demo", "-p", "types", "Q8_0,Q4_K_M", "-p", "eval_chunks", "4")
    assert good.returncode == 0, good.stderr[-2000:]
    assert sorted(path.name for path in (tmp_path / "tiny-austen-4m-GGUF").glob("*.gguf")) == [
        "imatrix.gguf",
        "tiny-austen-4m-Q4_K_M.gguf",
        "tiny-austen-4m-Q8_0.gguf",
    ]
    bad = papermill("-p", "model", "demo", "-p", "types", "Q9_0")
    assert bad.returncode != 0
    said = "\n".join(
        str(output)
        for cell in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
        for output in cell.get("outputs", [])
    )
    assert "types: 'Q9_0' is no GGUF type" in said
    assert "site-packages" not in said, "a line, no traceback"


@pytest.mark.parametrize("cell", ["plan", "run"])
def test_a_cell_in_a_fresh_kernel_says_which_come_first(
    cell: str, tmp_path: Path, cache: Path
) -> None:
    notebook = nbformat.read(FOLDER / "03_GPTQ.ipynb", as_version=4)
    notebook.cells = [one for one in notebook.cells if one.id == cell]
    alone = tmp_path / "alone.ipynb"
    nbformat.write(notebook, alone)
    with pytest.raises(CellExecutionError, match="forms: a cell above makes it") as said:
        run(alone, tmp_path / "work", environment(cache, colab=COLAB))
    assert "Run from the form on" in " ".join(str(said.value).split())
    assert "Traceback" not in str(said.value)


def test_a_chosen_model_is_never_replaced(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(CellExecutionError, match="someone/something"):
        start("00_AutoQuant", tmp_path, cache, model="someone/something")


def test_many_models_become_one_table(tmp_path: Path, cache: Path) -> None:
    said = start("08_Many_models", tmp_path, cache, methods="hqq, w8a8", eval_chunks=4)
    assert "Continuing with the two bundled demo models" in said["plan"]
    assert "4 of 4 jobs to run" in said["plan"]
    assert 'models = ["demo-small", "demo"]' in said["file"]
    assert "4 done; a page with links to all: " in said["run"]
    assert "data:image/png;base64," in said["compare"]
    assert said["compare"].count("tiny-austen") >= 1
    assert re.search(r"generates.*different", said["check"])
    assert "relative error 0." in said["look"]
    assert "# 4 jobs: 4 done" in said["card"]
    assert "Nothing is uploaded" in said["upload"]
    batch = tmp_path / "work" / "autoquant-batch"
    assert (batch / "demo-W8A8-int8-dynamic" / "model.safetensors").is_file()
    assert (batch / "summary.html").is_file()
