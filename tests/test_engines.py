"""What was run by llama.cpp and what by transformers never stands in one table without a word."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import nbformat

import autoquant
from autoquant.cluster import jobs, summary
from autoquant.cluster.board import Row
from autoquant.cluster.work import DONE, described
from autoquant.comparison import Comparison
from autoquant.core import language
from autoquant.core.records import TRANSFORMERS, WEIGHTS, Evaluation
from autoquant.display import engines, plot, tables
from autoquant.evaluate import paired
from autoquant.methods import METHODS
from autoquant.notebook import many
from autoquant.result import Result
from tests.gguf.conftest import QUICK

ROOT = Path(__file__).parent.parent


def by(result: Result, engine: str, *types: str) -> Result:
    """Some files of a run, as if an engine had run them."""
    return replace(
        result,
        artifacts=tuple(
            replace(one, evaluation=replace(one.evaluation, engine=engine))
            for one in result.artifacts
            if one.type in types and one.evaluation is not None
        ),
    )


def test_a_comparison_of_two_engines_marks_its_rows_and_says_how_far_they_are_apart(
    demo: Result,
) -> None:
    llama = by(demo, "llama.cpp", "Q8_0", "Q2_K")
    both = Comparison({"GGUF": llama, "GPTQ": by(demo, TRANSFORMERS, "Q4_K_M")}, "method")
    other = Comparison({"GGUF": llama, "GPTQ": by(demo, WEIGHTS, "Q4_K_M")}, "method")
    assert str(other) == str(both), "a larger model's GGUF files, by their weights"
    lines, page = str(both).splitlines(), both._repr_html_()
    assert lines[2].split("  ")[-1].strip() == "run by"
    ran = {" ".join(line.split()[:2]): line.split()[-1] for line in lines[5:8]}
    assert ran == {
        "GGUF Q8_0": "llama.cpp",
        "GGUF Q2_K": "llama.cpp",
        "GPTQ Q4_K_M": "transformers",
    }
    assert "0.003 to 0.005 with SmolLM2-135M" in str(both)
    for said in (engines.MIXED, engines.ONE):
        assert said in lines
        assert said in page
    assert page.count(">llama.cpp<") == 2
    assert "(GGUF, by llama.cpp Q2_K, " in plot.described(both.results)
    with language.spoken("tr"):
        assert "çalıştıran" in str(both)
        assert "0,003 ile 0,005" in str(both)
        assert "by one engine" not in str(both)


def test_a_table_of_one_engine_says_it_only_where_it_was_weights(demo: Result) -> None:
    one = Comparison({"a": by(demo, "llama.cpp", "Q8_0"), "b": by(demo, "llama.cpp", "Q2_K")})
    folders = Comparison({"a": by(demo, TRANSFORMERS, "Q8_0"), "b": demo})
    assert "run by" in str(folders), "demo was run by llama.cpp"
    folders = Comparison({name: by(demo, TRANSFORMERS, "Q8_0") for name in "ab"})
    for table in (one, folders):
        assert "run by" not in str(table)
        assert "llama.cpp rounds" not in str(table)
    beside = Comparison({"a": by(demo, TRANSFORMERS, "Q8_0"), "b": by(demo, WEIGHTS, "Q2_K")})
    assert "run by " not in str(beside).splitlines()[2]
    assert engines.BY_WEIGHTS in str(beside)
    files = replace(demo.source, gguf="x.gguf")
    neither = Comparison({"a": replace(demo, source=files), "b": by(demo, WEIGHTS, "Q2_K")})
    assert engines.MIXED in str(neither)
    assert engines.ONE not in str(neither), "of a GGUF file there are no other weights to run"


def test_the_difference_that_is_said_is_the_one_that_was_measured() -> None:
    text = (ROOT / "bench" / "RESULTS.md").read_text(encoding="utf-8")
    table = text.partition("## Measuring, block by block")[2].partition("llama.cpp rounds")[0]
    rows = [
        [float(cell.strip(" %")) for cell in line.split("|")[2:6]]
        for line in table.splitlines()
        if re.match(r"\| I?Q\d", line)
    ]
    assert len(rows) == 7
    nats = [llama - weights for llama, weights, _, _ in rows]
    percent = [100 * (llama / weights - 1) for _, _, llama, weights in rows]
    wanted = f"{min(nats):.3f} to {max(nats):.3f} with SmolLM2-135M (and"
    wanted += f" {min(percent):.1f} to {max(percent):.1f} % more perplexity)"
    assert wanted in engines.SIZE
    assert max(nats) <= engines.APART + 0.0005
    assert max(percent) / 100 <= engines.APART


def test_two_files_by_two_engines_differ_by_more_than_these_or_not_at_all(demo: Result) -> None:
    llama = demo._scored("Q8_0", "llama")
    assert llama.row is not None
    weights = replace(llama, name="weights", row=replace(llama.row, engine=WEIGHTS))
    coarse = replace(demo._scored("Q2_K", "coarse"))
    far, near = paired.difference(weights, coarse), paired.difference(weights, llama)
    assert far.mixed
    assert far.better == "weights"
    assert str(far).endswith(f"weights is better; {paired.ENGINES}")
    assert near.mixed
    little = replace(near, mean=0.004, error=0.001)
    assert little.better == ""
    assert little.verdict == "within the engines' difference"
    assert replace(little, mixed=False).better == "weights"
    table = paired.against_best([coarse, weights])
    assert str(table).splitlines()[-1] == f"coarse: {paired.ENGINES}"
    assert paired.ENGINES not in str(paired.against_best([coarse, llama]))
    with language.spoken("tr"):
        assert "transformers çalıştırdı" in language.told(str(far))
        assert "transformers çalıştırdı" in str(table)
    assert not demo.difference("Q8_0").mixed, "the unquantized model is the same to both"


def test_a_batch_says_it_too(demo: Result, tmp_path: Path) -> None:
    batch = jobs.read([{"model": "demo", "methods": ["gguf", "hqq"]}], tmp_path)
    rows = [Row(job, DONE) for job in batch.jobs]
    results = dict(
        zip(
            [row.job.name for row in rows],
            [by(demo, "llama.cpp", "Q8_0", "Q2_K"), by(demo, TRANSFORMERS, "Q4_K_M")],
            strict=True,
        )
    )
    page = summary.write(batch, rows, results).read_text(encoding="utf-8")
    assert "| top-1 agreement | run by | where |" in page
    assert page.count("| llama.cpp |") == 2
    assert page.count("| transformers |") == 1
    for text in (page, (tmp_path / "summary.html").read_text(encoding="utf-8")):
        assert engines.MIXED in text
    results = {name: by(demo, WEIGHTS, "Q8_0") for name in results}
    page = summary.write(batch, rows, results).read_text(encoding="utf-8")
    assert "run by |" not in page
    assert engines.BY_WEIGHTS in page
    assert "(llama.cpp)" in described(by(demo, "llama.cpp", "Q8_0"))
    assert "(llama.cpp)" in described(by(demo, "llama.cpp", "Q8_0", "Q2_K", "Q4_K_M"))
    assert "(llama.cpp)" not in described(by(demo, WEIGHTS, "Q8_0"))


def test_a_run_is_measured_for_a_comparison_and_stays_so(tmp_path: Path) -> None:
    """The files are not made again; what llama.cpp has measured is measured anew."""

    def engine(result: Result) -> str:
        evaluation = result.artifacts[0].evaluation
        assert isinstance(evaluation, Evaluation)
        return evaluation.engine

    values = {**QUICK, "types": ["Q8_0"], "out": tmp_path, "evaluate": "auto", "eval_chunks": 2}
    first = autoquant.gguf("demo", **values)
    made = first.path("Q8_0").stat().st_mtime_ns
    assert engine(first) == "llama.cpp"
    compared = autoquant.gguf("demo", **values, eval_by_weights=True)
    assert engine(compared) == WEIGHTS
    assert "were measured by their weights" in " ".join(compared.card().split())
    again = compared.evaluate(chunks=3)
    assert engine(again) == WEIGHTS, "as it was measured before"
    assert engine(again.evaluate(chunks=3, by_weights=False)) == "llama.cpp"
    assert engine(first.evaluate(chunks=2, by_weights=True)) == WEIGHTS
    assert first.path("Q8_0").stat().st_mtime_ns == made


def test_where_weights_cannot_be_run_it_is_said_before(demo: Result) -> None:
    gguf = METHODS["gguf"]
    options = gguf.Options(eval_by_weights=True)
    assert not any("llama.cpp runs" in note for note in gguf.about(demo.source, options))
    file = replace(demo.source, gguf=demo.artifacts[0].name, folder=demo.folder)
    assert any("llama.cpp runs" in note for note in gguf.about(file, options))


def test_notebooks_of_several_methods_measure_by_one_engine() -> None:
    asked = many.BatchOptions()
    entry = many.jobs(many.BatchOptions(models=("demo",)))[0]
    assert set(asked.methods) > {"gguf"}
    assert entry["gguf"]["eval_by_weights"] is True
    assert (
        "eval_by_weights"
        not in many.jobs(many.BatchOptions(models=("demo",), evaluate="off"))[0]["gguf"]
    )
    seen = []
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        codes = [cell.source for cell in cells if cell.cell_type == "code"]
        called = set(re.findall(r"autoquant\.(\w+)\(", "\n".join(codes))) & set(METHODS)
        if "gguf" in called and len(called) > 1 and "Comparison(" in "\n".join(codes):
            calls = [line for code in codes for line in code.splitlines() if ".gguf(" in line]
            assert all("**ggufs" in line for line in calls), path.name
            assert re.search(
                r'^ggufs = \{.*"eval_by_weights": True', "\n".join(codes), re.MULTILINE
            )
            seen.append(path.name)
    assert seen == ["07_Compare.ipynb"]


def test_a_table_of_files_says_who_ran_them(demo: Result) -> None:
    row = demo.artifacts[0].evaluation
    assert row is not None
    files = [("reference", row), ("a", row), ("b", replace(row, engine=TRANSFORMERS))]
    assert engines.MIXED in tables.evaluations(files)
    assert tables.evaluations(files).splitlines()[0].endswith("run by")
    assert "run by" not in tables.evaluations(files[:2])
