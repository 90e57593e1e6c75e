"""A batch: read and refused as a whole, planned, run, gone on with, summed up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant import result
from autoquant.cluster import board, jobs, shown, work
from autoquant.cluster.board import Board
from autoquant.cluster.jobs import Batch
from autoquant.core.errors import InputError
from autoquant.core.files import write_atomically
from tests.fakes.hub import TOKEN, Hub

EXAMPLE = Path(__file__).parents[2] / "examples" / "batch.toml"
QUICK = {"evaluate": "off"}
TWO = {"models": ["demo", "demo-small"], "methods": ["hqq", "w8a8"], **QUICK}
NAMES = ["demo-HQQ-4bit", "demo-W8A8-int8-dynamic"]
NAMES += [name.replace("demo", "demo-small") for name in NAMES]


def toml(folder: Path, text: str, name: str = "batch.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- reading --------------------------------------------------------------------------------------


def test_what_stands_nearer_to_a_job_counts(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        """
        out = "made"
        [defaults]
        eval_chunks = 7
        group_size = 64  # of the methods that have it
        [defaults.hqq]
        bits = 3
        [ray]
        cpus = 2
        memory = "2GB"
        [[jobs]]
        models = ["demo", "here"]
        methods = ["hqq", "w8a8"]
        eval_chunks = 8
        upload = "you/{model}-{METHOD}"
        private = "no"
        hqq = { bits = 2 }
        [[jobs]]
        model = "owner/name@main"
        method = "hqq"
        name = "{model}.{method}"
        """,
    )
    (tmp_path / "here").mkdir()
    batch = jobs.read(path)
    assert batch.folder == tmp_path / "made"
    assert batch.needs == {"cpus": 2, "memory": 2e9}
    assert [job.name for job in batch.jobs] == [
        "demo-HQQ-2bit-64g",
        "demo-W8A8-int8-dynamic",
        "here-HQQ-2bit-64g",
        "here-W8A8-int8-dynamic",
        "name.hqq",
    ]
    first, second, third, _, last = batch.jobs
    assert first.values == {
        "eval_chunks": 8, "group_size": 64, "bits": 2, "private": "no",
        "upload": "you/demo-HQQ-2bit-64g",
    }  # fmt: skip
    assert "group_size" not in second.values
    assert third.model == str(tmp_path / "here")
    assert last.values == {"eval_chunks": 7, "group_size": 64, "bits": 3}
    assert all(jobs.from_json(json.loads(json.dumps(job.to_json()))) == job for job in batch.jobs)
    assert jobs.read(path, tmp_path / "else").folder == tmp_path / "else"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], ["there is no job"]),
        (["demo"], ["job 1: 'demo' is no table"]),
        ([{"model": "demo"}], ["has neither of method and methods"]),
        ([{"model": "a", "models": ["b"], "method": "hqq"}], ["has both of model and models"]),
        ([{"model": 4, "method": "hqq"}], ["models is 4"]),
        ([{"models": [], "method": "hqq"}], ["models is []"]),
        ([{"model": "demo", "method": "gguff"}], ["no method is called 'gguff'; there are: gguf"]),
        ([{"model": "demo", "method": "hqq", "hqq": 4}], ["hqq is 4; write hqq = {"]),
        ([{"model": "demo", "method": "hqq", "awq": {}}], ["options of awq, which is not among"]),
        ([{"model": "demo", "method": "hqq", "name": "../x"}], ["'../x' is not a valid folder"]),
        (
            [{**TWO, "bits": 5}],
            ["job 1, hqq: bits: 5 is not allowed", "job 1, w8a8: no option is called 'bits'"],
        ),
        (
            [{**TWO, "model": "x"}, {"model": "demo", "method": "hqq", "upload": "nobody"}],
            ["job 1: has both", "job 2, hqq: upload: 'nobody' is not a repository"],
        ),
        ([TWO, {"model": "demo", "method": "hqq", **QUICK}], ["job 2: demo by hqq is in job 1"]),
        (
            [{"model": "demo", "method": "gguf", "types": t} for t in (["Q8_0"], ["Q4_K_M"])],
            ["job 2: demo by gguf would be written where demo of job 1 is", 'name = "{model}-'],
        ),
        (
            [{**TWO, "upload": "you/all"}],
            ["demo-W8A8-int8-dynamic would be uploaded to you/all, as is demo-HQQ-4bit"],
        ),
    ],
)
def test_all_that_is_wrong_is_said_at_once(
    tmp_path: Path, entries: list[Any], said: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        autoquant.batch(entries, out=tmp_path / "out")
    assert str(caught.value).startswith("jobs: nothing was run; to be put right first:\n")
    for text in said:
        assert text in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_jobs_types_are_split_by_their_size() -> None:
    entry = {"model": "demo", "method": "gguf", "types": ["F16", "Q8_0", "Q4_K_M", "Q2_K"],
             "upload": "you/{model}", "layout": "repo-per-type", "split": 2}  # fmt: skip
    batch = jobs.read([entry])
    assert [(job.name, job.values["types"]) for job in batch.jobs] == [
        ("demo-GGUF.1of2", ["F16"]),
        ("demo-GGUF.2of2", ["Q8_0", "Q4_K_M", "Q2_K"]),
    ]
    assert len(jobs.read([{**entry, "split": 9}]).jobs) == 4
    for wrong, said in (
        ({"layout": "one-repo"}, "write over each other's card"),
        ({"split": 1}, "1 is no number of jobs"),
        ({"types": ["F16"]}, "only types of gguf are split, two or more"),
        ({"method": "hqq", "types": []}, "no option is called 'types'"),
    ):
        with pytest.raises(InputError, match=said):
            jobs.read([{**entry, **wrong}])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models = [", "is no TOML file"),
        ("[[job]]", "'job' is not known here; there are out, [defaults], [ray] and [[jobs]]"),
        ("out = 3", "out is 3; write the name of a folder"),
        ("[defaults]\nmodel = 'demo'", "defaults.model: only options"),
        ("[defaults]\nbist = 4\n[[jobs]]\nmodel='demo'\nmethod='hqq'", "no method has an option"),
        ("ray = 3", "write [ray] with"),
        ("[ray]\ncpus = 0", "ray: cpus is 0; write a number above 0"),
        ("[ray]\nmemory = 'much'", "ray: memory is 'much'"),
        ("[ray]\nnodes = 3", "ray: nodes is not known here"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        jobs.read(toml(tmp_path, text))
    assert said in str(caught.value)
    assert "batch.toml" in str(caught.value)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no.toml cannot be read"):
        jobs.read(tmp_path / "no.toml")


# --- plans ----------------------------------------------------------------------------------------


def test_plans_show_what_cannot_be_made_and_write_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    entries = [TWO, {"model": str(tmp_path / "missing"), "method": "hqq"}]
    planned = autoquant.batch(entries, out=out, dry_run=True)
    assert not out.exists()
    assert [one.wrong for one in planned.planned[:4]] == [""] * 4
    assert planned.planned[4].wrong
    text = " ".join(str(planned).split())
    assert "4 of 5 jobs to run" in text
    assert re.search(r"\[1\] missing-HQQ-4bit: .*missing", text)
    sizes = sum(item.bytes for one in planned.ready for item in one.plan.items)
    assert planned.kept == sizes
    assert planned._repr_html_().count("<tr>") == 6


def test_what_does_not_fit_together_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoquant.cluster.planning.free_bytes", lambda path: 1000)
    planned = autoquant.batch([TWO], out=tmp_path / "out", dry_run=True)
    assert "NOT all of it fits on the disk" in " ".join(str(planned).split())


def test_an_upload_that_is_not_allowed_is_said_with_the_plans(tmp_path: Path) -> None:
    """By the token of somebody who may only read, and to somebody else's repository."""
    reader = "hf_" + "ReaderReaderReaderReaderReaderRead"
    user = {"name": "tester", "role": "write", "orgs": []}
    hub = Hub(tmp_path / "hub", {TOKEN: user, reader: {**user, "role": "read"}}).start()
    path = toml(
        tmp_path,
        """
        [[jobs]]
        models = ["demo", "demo-small"]
        method = "hqq"
        evaluate = "off"
        base_model = "maker/tiny"
        upload = "tester/{model}"
        [[jobs]]
        model = "demo"
        method = "w8a8"
        base_model = "maker/tiny"
        upload = "somebody/{model}"
        """,
    )
    online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    said = {}
    for token in (TOKEN, reader):
        done = subprocess.run(
            [sys.executable, "-m", "autoquant.cli", "batch", str(path), "--dry-run"],
            env={**os.environ, **online, "HF_HOME": str(tmp_path), "HF_TOKEN": token},
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert token not in done.stdout + done.stderr
        said[token] = " ".join(done.stdout.split())
    hub.stop()
    assert "2 of 3 jobs to run" in said[TOKEN]
    assert "belongs to tester, who cannot write to 'somebody'" in said[TOKEN]
    assert "0 of 3 jobs are done" in said[reader]
    assert said[reader].count("read") >= 2


def test_threads_write_the_same_cache_entry_at_once(tmp_path: Path) -> None:
    """As plans side by side do, of one model: none takes another one's unfinished file away."""
    path, texts = tmp_path / "entry.json", [str(i) * 100_000 for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        writing = [threads.submit(write_atomically, path, text, shared=True) for text in texts * 20]
    assert not [one for one in writing if one.exception()]
    assert path.read_text() in texts
    assert [one.name for one in tmp_path.iterdir()] == ["entry.json"]


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_example_runs_and_what_failed_is_tried_again(tmp_path: Path) -> None:
    """Two models by three methods, as the README says; and then a seventh job with a model that
    comes later.
    """
    out = tmp_path / "out"
    late = tmp_path / "late"
    more = f"\n[[jobs]]\nmodel = '{late}'\nmethod = 'hqq'\n"
    path = toml(tmp_path, EXAMPLE.read_text(encoding="utf-8") + more)
    command = [sys.executable, "-m", "autoquant.cli", "batch", str(path), "--out", str(out)]
    first = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert first.returncode == 1, first.stderr
    assert "6 done" in first.stdout
    assert "1 failed" in first.stdout
    assert "Traceback" not in first.stderr
    page, html = ((out / f"summary.{kind}").read_text() for kind in ("md", "html"))
    assert page.startswith("# 7 jobs: 1 failed, 6 done")
    links = re.findall(r"\[here\]\(<(.*?)>\)", page)
    assert len(links) == 8
    assert all((out / link).exists() and f"'{link}'" in html for link in links)
    assert f"| late-HQQ-4bit | no such folder: {late}" in page
    assert (out / ".autoquant-batch/logs/demo-GGUF.txt").is_file()
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}

    late.symlink_to(Path(autoquant.__file__).parent / "demo" / "tiny-austen-2m")
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert "1 of 7 jobs to run" in again.stdout
    assert again.stderr.splitlines()[0] == "late-HQQ-4bit: running (6 of 7 ended)"
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())
    assert "Failed" not in (out / "summary.md").read_text()


def test_a_batch_that_was_edited_makes_what_is_new(tmp_path: Path) -> None:
    entry = {"models": ["demo-small"], "methods": ["hqq", "w8a8"], "name": "{method}", **QUICK}
    before = autoquant.batch([entry], out=tmp_path)
    # a notebook's links begin at the notebook
    links = re.findall(r"\]\(<(.*?)>\)", before.page()._repr_markdown_())
    assert len(links) == 2
    assert all(Path(link).is_dir() for link in links)
    assert list(before.results) == ["hqq", "w8a8"]
    assert isinstance(before["hqq"], autoquant.Result)
    edited = {**entry, "methods": ["hqq"], "hqq": {"bits": 3}}
    planned = autoquant.batch([edited], out=tmp_path, dry_run=True)
    assert "holds a 4bit-64g model; name another folder for 3bit-64g" in planned.planned[0].wrong
    edited["name"] = "{METHOD}"
    after = autoquant.batch([edited], out=tmp_path)
    assert [artifact.type for artifact in after["HQQ-3bit"].artifacts] == ["3bit-64g"]
    assert (tmp_path / "w8a8" / "README.md").is_file()
    # what is measured now is not quantized again
    made = (tmp_path / "hqq" / "model.safetensors").stat().st_mtime_ns
    measured = autoquant.batch([{**entry, "methods": ["hqq"], "evaluate": "on"}], out=tmp_path)
    assert measured["hqq"].artifacts[0].evaluation is not None
    assert (tmp_path / "hqq" / "model.safetensors").stat().st_mtime_ns == made
    # another model in a folder that is somebody else's already
    other = autoquant.batch([{**entry, "models": ["demo"]}], out=tmp_path, dry_run=True)
    assert "holds hqq files of tiny-austen-2m" in other.planned[0].wrong
    assert other.ready == []


def test_a_fault_of_our_own_stops_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantize(method: Any, model: str, **rest: Any) -> Any:
        raise {"demo": ZeroDivisionError("ours"), "demo-small": OSError(28, "No space left")}[model]

    monkeypatch.setattr(result, "quantize", quantize)
    done = autoquant.batch([{**TWO, "methods": ["hqq"]}], out=tmp_path)
    assert set(done.failed) == {"demo-HQQ-4bit", "demo-small-HQQ-4bit"}
    line = done.failed["demo-HQQ-4bit"]
    log = board.log_of(tmp_path, "demo-HQQ-4bit")
    assert f"ZeroDivisionError: ours); its traceback is in {log}" in line
    assert "Traceback" in log.read_text()
    assert "No space left" in done.failed["demo-small-HQQ-4bit"]
    job = jobs.read([{"model": "demo-small", "method": "hqq"}], tmp_path).jobs[0]
    assert work.do(job, tmp_path / "full", tmp_path / "log", lambda *_: None).disk_full


def test_an_interrupt_leaves_the_page_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        "[[jobs]]\nmodels = ['demo-small', 'demo']\nmethods = ['hqq', 'gguf']\n"
        "hqq = { evaluate = 'off' }\ngguf = { eval_chunks = 100 }",
    )
    command = [sys.executable, "-m", "autoquant.cli", "batch", str(path), "--out", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("demo-small-GGUF: running"):
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    page = (tmp_path / "summary.md").read_text()
    assert page.startswith("# 4 jobs: 1 stopped, 2 waiting, 1 done")
    assert board.saved(tmp_path)["demo-small-GGUF"]["state"] == "stopped"
    planned = autoquant.batch(path, out=tmp_path, dry_run=True)
    assert [one.job.name for one in planned.ready] == [
        "demo-small-GGUF", "demo-HQQ-4bit", "demo-GGUF"
    ]  # fmt: skip


def test_two_batches_do_not_share_a_folder(tmp_path: Path) -> None:
    from autoquant.cluster import run

    with run._alone(tmp_path), pytest.raises(InputError, match="another batch is being run"):
        autoquant.batch([{"model": "demo", "method": "hqq", **QUICK}], out=tmp_path)


# --- what is shown --------------------------------------------------------------------------------


def small_board(tmp_path: Path, count: int) -> Board:
    batch = jobs.read([{"model": "demo", "method": "hqq", "name": f"job{i}", "eval_chunks": i + 1}
                       for i in range(count)], tmp_path)  # fmt: skip
    return Board(Batch(tmp_path, batch.jobs))


def test_of_many_jobs_those_are_shown_that_matter(tmp_path: Path) -> None:
    board = small_board(tmp_path, 50)
    board.begin("job40")
    board.progress("job40", "1 of 2, quantize", 0.25)
    board.end("job7", work.Outcome(work.FAILED, "no"))
    rows, rest = shown.chosen(board.rows)
    names = [row.job.name for row in rows]
    assert len(names) == shown.LINES
    assert {"job40", "job7", "job0"} <= set(names)
    assert names == sorted(names, key=lambda name: int(name[3:]))
    assert rest == "… and 30 more: 1 running, 1 failed, 48 waiting"
    assert shown.cells(board.row("job40"))[2] == "1 of 2, quantize 25%"


def test_a_terminal_sees_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    board = small_board(tmp_path, 3)
    with shown.live(board):
        board.begin("job1")
        board.progress("job1", "2 of 2, measure", 0.5)
        time.sleep(2 * shown.OFTEN)
    drawn = capsys.readouterr().err
    assert "2 of 2, measure 50%" in drawn
    assert "1 running, 2 waiting" in drawn


def test_the_stages_of_a_run_reach_the_board(tmp_path: Path) -> None:
    job = jobs.read([{"model": "demo-small", "method": "hqq", "eval_chunks": 2}], tmp_path).jobs[0]
    seen: list[tuple[str, float]] = []
    outcome = work.do(
        job, tmp_path / "run", tmp_path / "log", lambda title, share: seen.append((title, share))
    )
    assert outcome.state == work.DONE
    titles = {title for title, _ in seen}
    assert {"1 of 2, quantize", "2 of 2, measure"} <= titles
    assert max(share for title, share in seen if title == "2 of 2, measure") == 1.0
    assert all(0 <= share <= 1 for _, share in seen)
