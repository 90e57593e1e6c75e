"""Homes, caches and names that are not as one expects."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

import autoquant
from autoquant.core.cache import cache_folder
from autoquant.core.errors import InputError
from autoquant.source import resolve


def test_no_home_and_one_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUTOQUANT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(InputError, match=r"there is no home folder\): set AUTOQUANT_CACHE"):
        cache_folder()
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("AUTOQUANT_CACHE", str(file / "below"))
    with pytest.raises(InputError, match=r"Not a directory\): set AUTOQUANT_CACHE"):
        cache_folder()
    monkeypatch.setenv("AUTOQUANT_CACHE", str(tmp_path / "new" / "cache"))
    assert cache_folder().is_dir()


@pytest.mark.parametrize("name", ["~nobody-of-that-name/model", "x" * 5000])
def test_a_model_that_is_no_file_name(name: str) -> None:
    with pytest.raises(InputError, match="model: .*this is not a usable file name"):
        resolve(name)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("\u00dcnl\u00fc-7B", "Unlu-7B"),
        ("\u6a21\u578b", "model"),
        ("-dash", "dash"),
        ("a b", "a-b"),
        ("Gro\u00df\u0131", "Grossi"),
    ],
)
def test_names_that_every_command_takes(given: str, named: str) -> None:
    source = dataclasses.replace(resolve("demo"), id=f"owner/{given}")
    assert source.name == named


def test_a_folder_with_any_letters(
    model: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = model("-\u6a21 \u00dc")  # type: ignore[operator]
    made = autoquant.gguf(
        folder, types="Q8_0", pre_tokenizer="gpt-2", evaluate="off", out=tmp_path / "\u00f6 x"
    )
    assert [Path(one.name).name for one in made.artifacts] == ["U-Q8_0.gguf"]
    assert os.listdir(tmp_path / "\u00f6 x")


def test_memory_of_limited_control_groups(tmp_path: Path) -> None:
    """Of either version, the tightest group counts; its file cache counts as free."""
    from autoquant.core.machine import memory_available

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    assert memory_available(tmp_path) == 8_000_000 * 1024
    write("sys/fs/cgroup/memory.max", "max")
    write("sys/fs/cgroup/memory.current", "1000")
    write("proc/self/cgroup", "0::/box/inner\n")
    assert memory_available(tmp_path) == 8_000_000 * 1024
    write("sys/fs/cgroup/box/memory.max", "4000000000\n")
    write("sys/fs/cgroup/box/memory.current", "3900000000\n")
    assert memory_available(tmp_path) == 100_000_000
    write("sys/fs/cgroup/box/memory.stat", "anon 5\ninactive_file 2000000000\nactive_file 1\n")
    assert memory_available(tmp_path) == 2_100_000_001
    write("proc/self/cgroup", "9:cpu:/a\n4:memory:/docker/x\n0::/\n")
    write("sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "2000000000\n")
    write("sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes", "1500000000\n")
    write("sys/fs/cgroup/memory/docker/x/memory.stat", "total_inactive_file 300000000\n")
    assert memory_available(tmp_path) == 800_000_000
