"""Where the converter comes from: the published source package, or a named local copy."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from autoquant.backends.llamacpp import converter
from autoquant.core.errors import InputError, ProcessFailed


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delenv("AUTOQUANT_LLAMA_CPP")
    monkeypatch.setenv("AUTOQUANT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def package(folder: Path) -> Path:
    """A source package with only the files we take."""
    path = folder / f"llama_cpp_python-{converter.SUPPORTED}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in (
            "convert_hf_to_gguf.py",
            "convert_lora_to_gguf.py",
            "conversion/base.py",
            "gguf-py/gguf/__init__.py",
            "src/llama.cpp",
        ):
            source = folder / "one"
            source.write_text(f"# {name}\n")
            tar.add(source, f"llama_cpp_python-{converter.SUPPORTED}/vendor/llama.cpp/{name}")
    return path


def test_a_source_package_must_have_the_published_hash(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = package(clean)
    with pytest.raises(
        InputError,
        match=(
            r"has sha256 [0-9a-f]{64}, but llama-cpp-python .* not the published file\. To name a"
            r" local copy"
        ),
    ):
        converter.locate(str(path))
    assert not list((clean / "cache").glob("*")) if (clean / "cache").exists() else True
    monkeypatch.setitem(converter.SHA256, converter.SUPPORTED, converter.sha256_of(path))
    found = converter.locate(str(path))
    assert sorted(p.name for p in found.iterdir() if p.name != "__pycache__") == [
        "conversion",
        "convert_hf_to_gguf.py",
        "convert_lora_to_gguf.py",
        "gguf-py",
    ]
    assert converter.locate() == found, "the second time it comes from the cache"
    (found / "convert_lora_to_gguf.py").unlink()  # as an earlier release has unpacked it
    assert (converter.locate(str(path)) / "convert_lora_to_gguf.py").is_file()


def test_a_folder_must_be_llama_cpp(clean: Path) -> None:
    with pytest.raises(InputError, match="is no llama.cpp folder: it lacks convert_hf_to_gguf.py"):
        converter.locate(str(clean))
    with pytest.raises(InputError, match="no such file or folder"):
        converter.locate(str(clean / "none"))


def test_without_an_index_the_error_says_how_to_go_on(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        ProcessFailed, match=r"pip could not fetch llama-cpp-python .*AUTOQUANT_LLAMA_CPP"
    ):
        converter.locate()
    assert list((clean / "cache").iterdir()) == []


def test_another_version_of_the_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.2.0")
    with pytest.raises(
        InputError,
        match=(
            r"llama-cpp-python 0\.2\.0 is installed, .* pip install"
            rf" llama-cpp-python=={converter.SUPPORTED}"
        ),
    ):
        converter.installed_version()
