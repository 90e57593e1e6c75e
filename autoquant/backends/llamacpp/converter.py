"""Where llama.cpp's own converter comes from: the source package of the very llama-cpp-python that
is installed.

The wheel has no converter; its source distribution vendors the llama.cpp it was built from,
converter and gguf-py included. So versions cannot disagree and neither git nor cmake is needed. It
is fetched once and cached.
"""

from __future__ import annotations

import compileall
import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from autoquant.core.cache import cache_folder
from autoquant.core.errors import InputError, ProcessFailed
from autoquant.core.files import sha256_of
from autoquant.runtime import process

log = logging.getLogger(__name__)
PACKAGE = "llama-cpp-python"
SUPPORTED = "0.3.36"  # the ctypes structures of llama_cpp follow the llama.cpp of their release
# sha256 of the source distribution, as the Python Package Index lists it.
SHA256 = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
WANTED = (
    "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py",
    "conversion/",
    "gguf-py/",
    "LICENSE",
)
ANOTHER_WAY = (
    "To name a local copy instead, set AUTOQUANT_LLAMA_CPP (or the option converter) to a"
    f" llama.cpp folder or to the file llama_cpp_python-{SUPPORTED}.tar.gz"
)


def installed_version() -> str:
    """The version of llama-cpp-python; raises InputError if it is missing or not the one this
    package speaks to.
    """
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"GGUF needs {PACKAGE}=={SUPPORTED}: pip install 'autoquant-notebooks[gguf]'"
        ) from None
    if version != SUPPORTED:
        raise InputError(
            f"{PACKAGE} {version} is installed, but this release of AutoQuant speaks to {SUPPORTED}"
            f" only: pip install {PACKAGE}=={SUPPORTED}"
        )
    return version


def _unpack(archive: Path, version: str, target: Path) -> None:
    """Take the converter's files out of a source distribution into ``target``, all or nothing."""
    prefix = f"llama_cpp_python-{version}/vendor/llama.cpp/"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, tarfile.open(archive) as tar:
        members = [
            m
            for m in tar.getmembers()
            if m.name.startswith(prefix) and m.name[len(prefix) :].startswith(WANTED)
        ]
        tar.extractall(scratch, members=members, filter="data")
        unpacked = Path(scratch) / prefix
        if not (unpacked / "convert_hf_to_gguf.py").is_file():
            raise InputError(f"{archive} holds no llama.cpp converter at {prefix}")
        # saves a second a run where Python may not write its own bytecode there
        compileall.compile_dir(unpacked, quiet=2)
        # another process was first: theirs is the same
        with contextlib.suppress(FileExistsError, OSError):
            os.replace(unpacked, target)


def _missing(folder: Path) -> list[str]:
    """What a llama.cpp folder lacks of what is wanted of it."""
    return [name for name in WANTED[:-1] if not (folder / name).exists()]


def _check_hash(archive: Path, version: str) -> None:
    sha256 = sha256_of(archive)
    if sha256 != SHA256[version]:
        raise InputError(
            f"{archive} has sha256 {sha256}, but {PACKAGE} {version} is {SHA256[version]}: not the"
            f" published file. {ANOTHER_WAY}"
        )


def _download(version: str, folder: Path) -> Path:
    """The source package through pip, which honours the user's index, proxy and certificates."""
    if importlib.util.find_spec("pip") is None:
        raise InputError(
            "fetching llama.cpp's converter needs pip in this environment (python -m ensurepip)."
            f" {ANOTHER_WAY}"
        )
    argv = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-binary",
        PACKAGE,  # not :all:, by which older pips compile cmake too
        "--dest",
        str(folder),
        f"{PACKAGE}=={version}",
    ]
    archive = folder / f"llama_cpp_python-{version}.tar.gz"
    pip_log = folder / "pip.log"
    try:
        process.run(argv, log=pip_log, produces=[archive])
    except ProcessFailed:
        raise ProcessFailed(
            f"pip could not fetch {PACKAGE} {version}:"
            f" {process.tail(pip_log, 1) or 'it wrote no file'}. {ANOTHER_WAY}"
        ) from None
    return archive


def locate(given: str = "") -> Path:
    """The folder with ``convert_hf_to_gguf.py``, ``conversion/`` and ``gguf-py/`` of the installed
    version.

    ``given`` (or the environment variable AUTOQUANT_LLAMA_CPP) names a llama.cpp folder or a source
    distribution; otherwise the cached copy is used, and fetched first if there is none. A source
    distribution must have the published sha256. Raises InputError or ProcessFailed with the way on.
    """
    version = installed_version()
    given = given or os.environ.get("AUTOQUANT_LLAMA_CPP", "")
    local = Path(given).expanduser() if given else None
    if local is not None and local.is_dir():
        folder = (
            local / "vendor" / "llama.cpp" if (local / "vendor" / "llama.cpp").is_dir() else local
        )
        missing = _missing(folder)
        if missing:
            raise InputError(
                f"converter: {local} is no llama.cpp folder: it lacks {', '.join(missing)}"
            )
        return folder.resolve()
    if local is not None and not local.is_file():
        raise InputError(f"converter: no such file or folder: {local}")
    target = cache_folder() / f"llama.cpp-{version}"
    if _missing(target):  # also one that an earlier release has unpacked
        with tempfile.TemporaryDirectory() as scratch:
            if local is None:
                log.info(
                    "fetching llama.cpp's converter (the source of %s %s, 77 MB, once)",
                    PACKAGE,
                    version,
                )
            archive = local if local is not None else _download(version, Path(scratch))
            _check_hash(archive, version)
            shutil.rmtree(target, ignore_errors=True)
            _unpack(archive, version, target)
        if _missing(target):
            raise ProcessFailed(f"could not unpack the converter into {target}. {ANOTHER_WAY}")
    return target


def environment(converter: Path) -> dict[str, str]:
    """Environment variables for worker processes: the converter's gguf-py on the path."""
    paths = [str(converter / "gguf-py"), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
