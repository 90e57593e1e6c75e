"""The lessons that build by hand, from top to bottom in a kernel, without a network and a GPU: what
they say about their numbers is so. In Jupyter alone: they use nothing that Colab ships in another
version.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import nbformat
import pytest

from autoquant.notebook.exercises import EXERCISES
from autoquant.sizing import devices
from tests.notebooks.running import FOLDER, environment, run, shown

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
# bitsandbytes' own table, to four digits (functional.py, get_4bit_type)
NF4 = (
    (-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911),
    (0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1),
)


WHERE = ("only down_proj", "all but down_proj")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lessons-cache")


def lesson(name: str, exercises: int, tmp_path: Path, cache: Path) -> dict[str, str]:
    """What a lesson's cells show. None of its exercises is answered, and none stops it."""
    started = time.monotonic()
    made = run(FOLDER / f"{name}.ipynb", tmp_path / "work", environment(cache, colab=False))
    assert time.monotonic() - started < 150, "45 s on an idle core"
    said = {cell.id: shown(cell) for cell in made.cells if cell.cell_type == "code"}
    for i in range(1, exercises + 1):
        assert "not answered yet" in said[f"ex{i}"]
    return said


def percents(said: str) -> dict[str, list[float]]:
    """The rows of a table that grows: name -> errors in percent."""
    lines = [line for line in said.splitlines() if " %" in line and not line.startswith("<")]
    return {
        re.split(r"  +", line)[0]: [float(one) for one in re.findall(r"([\d.]+) %", line)]
        for line in lines
    }


def said_in_words(name: str) -> list[str]:
    """The text of a lesson, cell by cell."""
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    return [cell.source for cell in book.cells if cell.cell_type == "markdown"]


def test_the_lesson_on_outliers(tmp_path: Path, cache: Path) -> None:
    said = lesson("09_Outliers", 4, tmp_path, cache)
    error = percents(said["awq"])
    plain, columns, tokens = range(3)  # the layers: as it is, outlier columns, outlier tokens
    for way in ("LLM.int8()", "SmoothQuant", "rotated"):
        assert error[f"W8A8, {way}"][columns] < error["W8A8, per token"][columns] / 2, way
    assert error["W8A8, rotated"][tokens] < error["W8A8, per token"][tokens] / 3
    assert error["W8A8, SmoothQuant"][tokens] > error["W8A8, per token"][tokens] / 1.5, (
        "factors of columns do not help against outlier tokens"
    )
    assert error["W8A8, per token"][plain] < 1.5
    assert error["W4A16, AWQ"][columns] < error["W4A16, groups of 128"][columns] / 1.5
    assert error["W4A16, AWQ"][tokens] > error["W4A16, groups of 128"][tokens], "it gains nothing"
    assert re.search(r"down_proj +10\.6 +5\.0 +34\.9", said["look"]), "as the caption says"
    assert said["awq"].startswith(
        "correlation of log mean |x| and log max |w|\n"
        "gate_proj: 0.15; gate_proj, 3 columns × 10: 0.11; down_proj: 0.92\n"
    )
    assert error["W8A8, rotated"][tokens] < 1.1 * error["W8A16, the goal"][tokens], "close to it"
    found = re.findall(r"^(\w.*?) +([\d.]+)$", said["measured"], re.MULTILINE)
    perplexity = {name: float(value) for name, value in found}
    whole = perplexity["unquantized"]
    assert perplexity["W8A8"] == pytest.approx(whole, rel=0.01)
    lost = perplexity["W4A4"] - whole
    assert perplexity["W4A4, rotated"] - whole < lost / 2, "rotation takes away most of the loss"
    assert perplexity["W4A4, SmoothQuant"] - whole > 0.9 * lost, "there are no outlier columns"
    assert perplexity["W4A4, LLM.int8()"] - whole < lost / 2, "by what stays in 16 bits"
    down, others = (perplexity[f"W4A4, {which} rotated"] - whole for which in WHERE)
    assert down < lost / 2, "in front of down_proj"
    assert others > 0.9 * lost, "and nowhere else"


def test_the_lesson_on_formats(tmp_path: Path, cache: Path) -> None:
    said = lesson("10_Formats", 4, tmp_path, cache)
    assert "different from llama.cpp's: 0\n" in said["byte"], "Q4_0 by hand"
    assert "same weights as llama.cpp reads: True" in said["super"]
    assert "packed again, the same bytes: True" in said["super"]
    assert "MXFP4: bytes that differ from llama.cpp's: 0\n" in said["mx"]
    levels = [float(one) for one in re.findall(r"-?[\d.]{6,}", said["nf4"])][:16]
    below, above = NF4
    assert levels == pytest.approx([*below, 0, *above], abs=2e-4)
    error = percents(said["mx"])
    weights, output = 0, 1
    assert error["Q4_K, llama.cpp's search"][weights] < error["Q4_K, simplest choice"][weights]
    fitted, weighted = error["3 bits, least squares"], error["3 bits, weighted by importance"]
    assert weighted[weights] > fitted[weights]
    assert weighted[output] < fitted[output]
    text = " ".join(said_in_words("10_Formats"))
    for row in ("NF4, blocks of 64", "evenly spaced, blocks of 64", "MXFP4", "NVFP4"):
        for figure in error[row]:
            assert f"{figure:.2f}" in text, f"{row}: the text's figures are not these"
    assert error["NF4, blocks of 64"][weights] < error["evenly spaced, blocks of 64"][weights]
    assert error["NF4, blocks of 64"][weights] >= error["Q4_0"][weights], "half as many share"
    assert error["NVFP4"][weights] < error["MXFP4"][weights]
    assert "level 6: 39%; that are cut off: 37%" in said["mx"], "as the text says"
    gained = {
        kind: 1 - error[f"{kind} with importance"][output] / error[plain][output]
        for kind, plain in (("Q4_K", "Q4_K, llama.cpp's search"), ("Q2_K", "Q2_K"))
    }
    assert gained["Q2_K"] == pytest.approx(0.17, abs=0.02)
    assert gained["Q4_K"] == pytest.approx(0.11, abs=0.02)
    assert "4e 26 = 0x264e = 0.0246; 69 = codes 9 (weight 0) and 6 (weight 16)" in said["byte"]
    rows = {
        line[:34].strip(): [float(one) for one in line[34:].split()]
        for line in said["compared"].splitlines()
        if re.match(r"(chosen for|all \d)", line)
    }
    bits, predicted, measured = range(3)
    chosen, even = rows["chosen for 4.5 bits"], rows["all 4-bit codes (+ 0.5 for scales)"]
    assert chosen[bits] <= even[bits]
    assert chosen[predicted] < even[predicted]
    assert chosen[measured] < even[measured], "it is really better, not only predicted to be"
    assert 1 - chosen[measured] / even[measured] == pytest.approx(0.18, abs=0.01), (
        "as the text says"
    )
    low = [1 - row[predicted] / row[measured] for row in rows.values()]
    assert (min(low), max(low)) == pytest.approx((0.13, 0.19), abs=0.01), "13 to 19 % too low"
    given = dict(re.findall(r"^(\w+_proj) +(.*)$", said["budget"], re.MULTILINE))
    assert {part: [int(one) for one in bits.split()] for part, bits in given.items()} == {
        "q_proj": [3, 4, 4, 4],
        "k_proj": [3, 5, 4, 4],
        "v_proj": [5, 5, 5, 5],
        "o_proj": [5, 5, 4, 4],
        "gate_proj": [4, 4, 4, 4],
        "up_proj": [4, 3, 3, 4],
        "down_proj": [5, 4, 4, 4],
    }, "as the text says"
    each = {
        part: float(lost)
        for part, lost in re.findall(r"^(\w+) .*: +([\d.]+)", said["fisher"], re.M)
    }
    assert each["v_proj"] / each["up_proj"] == pytest.approx(5.75, abs=0.1), "almost six times"


def test_the_lesson_on_serving(tmp_path: Path, cache: Path) -> None:
    said = lesson("11_Serving", 3, tmp_path, cache)
    for line in said["memory"].splitlines():
        if line.startswith("cache"):
            by_hand, ours = re.findall(r"([\d.]+) GB", line)
            assert by_hand == ours
    by_hand, theirs = re.findall(r"([\d,]{6,})", said["memory"].split("bundled model")[1])[:2]
    assert by_hand == theirs, "llama.cpp's own figure"
    cards = {
        line[:10].strip(): [float(one.replace(",", "")) for one in line[10:].split() if one != "–"]
        for line in said["roof"].splitlines()
        if re.match(r"(T4|L4|RTX|A100|H100|H200)", line)
    }
    for _, *figures in [one for one in cards.values() if len(one) == 5]:
        write_16, write_4, read_16, read_4 = figures
        assert write_4 > 3 * write_16
        assert read_4 == read_16, "bits do not help where computing takes the time"
    # a cache of so many tokens takes longer to move than its user's token to compute: no number of
    # users makes decode compute-bound
    decode, h100, token = EXERCISES["11.2"].right, (3.35e12, 9.89e14), 2 * 32 * 8 * 128 * 2
    roof = h100[1] / (2 * 8.03e9)
    assert decode(8.03e9, 16, 380 * token, 10**6, *h100) > 0.99 * roof
    assert decode(8.03e9, 16, 450 * token, 10**6, *h100) < 0.99 * roof
    envelope = 8.03e9 * 4.9 / 8 + 32_768 * token  # section 5
    assert envelope / 1e9 == pytest.approx(9.2, abs=0.05)
    assert envelope < devices.device("T4").usable == pytest.approx(15.0e9, abs=5e7)
    assert decode(8.03e9, 4.9, 32_768 * token, 1, 3.2e11, 6.5e13) == pytest.approx(35, abs=0.5)
    fewer = 32_768 * token * 8.5 / 16
    assert decode(8.03e9, 4.9, fewer, 1, 3.2e11, 6.5e13) == pytest.approx(44, abs=0.5)
    assert decode(8.03e9, 16, 100 * token, 10_000, *h100) == pytest.approx(61_582, abs=1)
    assert decode(8.03e9, 16, 1000 * token, 10_000, *h100) == pytest.approx(25_000, rel=0.02)
    assert "Exercise 11.2 first" in said["users"]
    error = percents(said["kv"])
    assert all(row[0] < 1 for row in error.values()), "8 bits cost below one percent"
    both = error.pop("both: K per channel, V per token")
    assert both[:2] == pytest.approx([0.63, 10.6], abs=0.05), "as the text says"
    assert all(row == sorted(row) for row in error.values()), "the fewer bits, the more"
    assert all(6.5 < row[1] < 10.5 for row in error.values()), "7 to 10 percent at 4 bits"
    assert error["K per channel"][1] < 0.9 * error["K per token"][1]
    rate = {
        kind: float(decode.replace(",", ""))
        for kind, decode in re.findall(r"^(\w+) +[\d.]+ MB +[\d,]+ +([\d,]+)", said["speed"], re.M)
    }
    assert rate["Q4_0"] > rate["F16"], "fewer bits, more tokens per second"
