"""Killed at any moment and run again, the result is the same bytes; a full disk or a failed check
leaves nothing half-written.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import autoquant
from autoquant.core.errors import CheckFailed, InputError
from autoquant.core.files import sha256_of
from autoquant.result import Result

COMMAND = [
    sys.executable,
    "-m",
    "autoquant.cli",
    "quantize",
    "gguf",
    "demo",
    "--pre-tokenizer",
    "gpt-2",
    "--imatrix",
    "builtin",
    "--imatrix-chunks",
    "20",
    "--types",
    "Q8_0,Q4_K_M,Q2_K,IQ3_XXS",
    "--eval-chunks",
    "30",
]


def bytes_of(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.glob("*.gguf")}


def wait_for(
    seen: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120
) -> None:
    end = time.monotonic() + seconds
    while not seen():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.01)


def workers_of(pid: int) -> list[int]:
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        # a thread may end between being listed and being read
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children += [int(child) for child in (task / "children").read_text().split()]
    return children


def alive(pid: int) -> bool:
    try:
        return "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "convert": lambda out: (out / ".autoquant" / "header.gguf").exists(),
    "imatrix": lambda out: '"convert"' in journal(out),
    "quantize": (
        lambda out: (
            any((out / ".autoquant" / "work").glob("tiny-austen-4m-*.gguf"))
            and '"imatrix"' in journal(out)
        )
    ),
    "second type": lambda out: journal(out).count('"quantize ') >= 1,
    "evaluate": lambda out: '"evaluate unquantized"' in journal(out),
}


def journal(out: Path) -> str:
    path = out / ".autoquant" / "journal.json"
    return path.read_text() if path.is_file() else ""


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_sigkill_then_again_gives_the_same_bytes(moment: str, demo: Result, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cache = {**os.environ, "AUTOQUANT_CACHE": str(tmp_path / "cache")}
    first = subprocess.Popen([*COMMAND, "--out", str(out)], env=cache, stdout=subprocess.DEVNULL)
    wait_for(lambda: MOMENTS[moment](out), first)
    children = workers_of(first.pid)
    first.kill()
    first.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, children)), "nobody goes on writing after the run was killed"
    before = bytes_of(out)
    again = subprocess.run(
        [*COMMAND, "--out", str(out)], env=cache, check=True, capture_output=True, text=True
    )
    assert "unquantized" in again.stdout
    wanted = {name: digest for name, digest in bytes_of(demo.folder).items() if "F16" not in name}
    assert bytes_of(out) == wanted, "same bytes as the undisturbed run of the session fixture"
    assert before.items() <= wanted.items(), "what was there when it was killed was whole"
    assert not (out / ".autoquant" / "work").exists()


def test_a_changed_option_redoes_only_what_depends_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    options = {
        "pre_tokenizer": "gpt-2",
        "types": ["Q8_0", "Q4_K_M"],
        "imatrix": "builtin",
        "evaluate": "off",
        "out": out,
    }
    autoquant.gguf("demo", imatrix_chunks=2, **options)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.gguf")}
    autoquant.gguf("demo", imatrix_chunks=3, **options)
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.gguf")}
    assert after["tiny-austen-4m-Q8_0.gguf"] == times["tiny-austen-4m-Q8_0.gguf"], (
        "Q8_0 does not use the importance matrix"
    )
    assert after["tiny-austen-4m-Q4_K_M.gguf"] != times["tiny-austen-4m-Q4_K_M.gguf"]
    assert after["imatrix.gguf"] != times["imatrix.gguf"]


def test_a_file_changed_behind_our_back_is_made_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = {"pre_tokenizer": "gpt-2", "types": ["Q4_K_M"], "evaluate": "off", "out": out}
    first = autoquant.gguf("demo", **options)
    path = first.path("Q4_K_M")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    autoquant.gguf("demo", **options)
    assert path.read_bytes() == whole


def test_two_runs_into_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = subprocess.Popen([*COMMAND, "--out", str(out)], stdout=subprocess.DEVNULL)
    try:
        wait_for(
            lambda: (
                (out / ".autoquant" / "lock").exists()
                and (out / ".autoquant" / "lock").stat().st_size > 0
            ),
            first,
        )
        with pytest.raises(
            InputError, match=rf"another run is writing into .*: process {first.pid} on "
        ):
            autoquant.gguf("demo", pre_tokenizer="gpt-2", out=out)
    finally:
        first.send_signal(signal.SIGTERM)
        status = first.wait(30)
    assert status == 143
    left = {path.name for path in out.iterdir()} if out.exists() else set()
    assert left <= {".autoquant"}, "nothing but what it would go on with, if it has begun a type"


def test_a_folder_with_something_else_is_refused_and_untouched(
    tmp_path: Path, demo: Result, model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "autoquant.source.fetch", lambda _: pytest.fail("nothing is downloaded first")
    )
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"holds something else \(thesis.txt"):
        autoquant.gguf("demo", pre_tokenizer="gpt-2", out=out)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    for wrong, said in (
        (out / "thesis.txt", "is a file; name a folder"),
        (out / "thesis.txt" / "chapter", "thesis.txt is a file, so there cannot be a folder"),
    ):
        with pytest.raises(InputError, match=f"out: .*{said}"):
            autoquant.gguf("demo", pre_tokenizer="gpt-2", out=wrong)
    with pytest.raises(InputError, match="holds gguf files of tiny-austen-4m"):
        autoquant.gguf(model("other"), pre_tokenizer="gpt-2", out=demo.folder)
    folder = model("inside")
    with pytest.raises(InputError, match="inside the model's own folder"):
        autoquant.gguf(folder, pre_tokenizer="gpt-2", out=folder / "out")


def test_a_failed_check_keeps_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is falsified for one type: its file must not appear, the other's must, and the
    intermediate file must be gone.
    """
    from autoquant.runtime import process

    real = process.call

    def falsify(target: str, /, **kwargs: object) -> object:
        if target == "autoquant.backends.llamacpp.convert:convert":
            target = "tests.helpers.gguf:convert_with_a_wrong_size"
        return real(target, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("autoquant.runtime.process.call", falsify)
    out = tmp_path / "out"
    with pytest.raises(
        CheckFailed, match=r"tiny-austen-4m-Q8_0.gguf has [\d,]+ bytes, planned were 1"
    ):
        autoquant.gguf(
            "demo",
            types=["Q2_K", "Q8_0"],
            pre_tokenizer="gpt-2",
            evaluate="off",
            threads=1,
            out=out,
        )
    assert sorted(path.name for path in out.iterdir()) == [".autoquant", "tiny-austen-4m-Q2_K.gguf"]
    assert not (out / ".autoquant" / "work").exists()
    assert not (out / ".autoquant" / "jobs").exists()
    monkeypatch.undo()
    monkeypatch.setenv("AUTOQUANT_CACHE", str(tmp_path / "cache"))
    done = autoquant.gguf(
        "demo", types=["Q2_K", "Q8_0"], pre_tokenizer="gpt-2", evaluate="off", out=out
    )
    assert [a.type for a in done.artifacts] == ["Q2_K", "Q8_0"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A mounted file system of a given size; needs root."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(megabytes: int) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}M", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.skip("mounting needs root")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


@pytest.mark.parametrize(("megabytes", "during"), [(9, "the last tensors"), (5, "the first")])
def test_a_disk_that_fills_up_in_mid_run(
    small_disk: Callable[[int], Path], megabytes: int, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning is told there is room (another program takes it later); the write then fails with
    ENOSPC for real.
    """
    import shutil

    disk = small_disk(megabytes)
    usage = shutil.disk_usage(disk)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=10**12))
    with pytest.raises(InputError, match="no space left on the disk"):
        autoquant.gguf(
            "demo",
            types=["Q8_0", "Q6_K", "Q4_K_M"],
            pre_tokenizer="gpt-2",
            evaluate="off",
            threads=1,
            out=disk / "out",
        )
    assert not list(disk.rglob("*F16*")), "the intermediate file is gone"
    for path in disk.rglob("*.gguf"):
        if path.name != "header.gguf":
            assert (
                path.name == "tiny-austen-4m-Q4_K_M.gguf" or path.name == "tiny-austen-4m-Q6_K.gguf"
            )
            assert path.stat().st_size > 2_000_000, "whole or not there"


def test_a_folder_of_a_run_that_had_made_nothing_is_free_for_another(tmp_path: Path) -> None:
    from autoquant.core.journal import RunFolder

    first = RunFolder(tmp_path / "out", method="gguf", source_id="one", source_sha256="1")
    first.__enter__()
    first._release()  # killed: nothing is tidied up
    with RunFolder(tmp_path / "out", method="gptq", source_id="two", source_sha256="2") as second:
        (second.folder / "file").write_text("x")
        second.record("step", "", [second.folder / "file"], {})
    with (
        pytest.raises(InputError, match="holds gptq files of two"),
        RunFolder(tmp_path / "out", method="gguf", source_id="one", source_sha256="1"),
    ):
        pass
