"""Our perplexity and importance matrix against llama.cpp's own tools, built from the very same
source. usage: python -m bench.llama_tools MODEL WORK

MODEL is a checkpoint folder (bench-work/smollm2). llama-perplexity and llama-imatrix are compiled
once into WORK/tools (cmake and about ten CPU-minutes). Compared on the same text and chunks: the
perplexity of the unquantized and of a Q4_K_M file, and the sums of the importance matrix; and
llama-imatrix must read our importance matrix file.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import autoquant
from autoquant.backends.llamacpp import converter
from autoquant.core.bundled import CALIBRATION_TEXT, EVALUATION_TEXT
from autoquant.runtime import process

CHUNKS = 20


def build(work: Path) -> Path:
    """Compile the two tools from the source package; returns their folder."""
    bin_folder = work / "build" / "bin"
    if not (bin_folder / "llama-imatrix").is_file():
        with tempfile.TemporaryDirectory() as scratch:
            archive = converter._download(converter.SUPPORTED, Path(scratch))
            with tarfile.open(archive) as tar:
                tar.extractall(work, filter="data")
        source = work / f"llama_cpp_python-{converter.SUPPORTED}" / "vendor" / "llama.cpp"
        subprocess.run(
            [
                "cmake",
                "-S",
                str(source),
                "-B",
                str(work / "build"),
                "-DCMAKE_BUILD_TYPE=Release",
                "-DGGML_NATIVE=OFF",
                "-DLLAMA_CURL=OFF",
                "-DLLAMA_OPENSSL=OFF",
                "-DLLAMA_BUILD_SERVER=OFF",
                "-DLLAMA_BUILD_TESTS=OFF",
                "-DLLAMA_BUILD_EXAMPLES=OFF",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        subprocess.run(
            [
                "cmake",
                "--build",
                str(work / "build"),
                "-j2",
                "--target",
                "llama-perplexity",
                "llama-imatrix",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return bin_folder


def main(model: Path, work: Path) -> None:
    """Quantize, run both, print the figures side by side."""
    tools = build(work / "tools")
    result = autoquant.gguf(
        model,
        types=["F16", "Q4_K_M"],
        imatrix="builtin",
        imatrix_chunks=CHUNKS,
        evaluate="on",
        eval_chunks=CHUNKS,
        out=work / "llama-tools",
    )
    for artifact in result.artifacts:
        done = subprocess.run(
            [
                str(tools / "llama-perplexity"),
                "-m",
                str(result.folder / artifact.name),
                "-f",
                str(EVALUATION_TEXT),
                "-c",
                "512",
                "-b",
                "512",
                "--chunks",
                str(CHUNKS),
                "-t",
                "2",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        match = re.search(r"PPL = ([\d.]+) \+/- ([\d.]+)", done.stdout + done.stderr)
        assert match, done.stderr[-500:]
        assert artifact.evaluation is not None
        ours = artifact.evaluation
        print(
            f"{artifact.type}: llama-perplexity {match[1]} ± {match[2]}, ours {ours.perplexity:.4f}"
            f" ± {ours.perplexity_error:.4f}"
        )
    theirs, mine = work / "llama-tools.imatrix.gguf", result.folder / "imatrix.gguf"
    subprocess.run(
        [
            str(tools / "llama-imatrix"),
            "-m",
            str(result.path("F16")),
            "-f",
            str(CALIBRATION_TEXT),
            "-c",
            "512",
            "--chunks",
            str(CHUNKS),
            "-t",
            "2",
            "--no-ppl",
            "-o",
            str(theirs),
        ],
        capture_output=True,
        check=True,
    )
    differences = process.call(
        "bench.llama_tools:compare",
        log=work / "log",
        env=converter.environment(converter.locate()),
        ours=str(mine),
        theirs=str(theirs),
    )
    print(
        f"imatrix: {differences['tensors']} tensors in both, same names: {differences['same']},"
        f" largest relative difference of a tensor's sums {differences['worst']:.1e}"
    )
    shown = subprocess.run(
        [
            str(tools / "llama-imatrix"),
            "--in-file",
            str(mine),
            "--show-statistics",
            "-m",
            str(result.path("F16")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    print(
        f"llama-imatrix --show-statistics on our file: exit status {shown.returncode}, names"
        f" attn_q: {'attn_q' in shown.stdout + shown.stderr}"
    )


def compare(ours: str, theirs: str) -> dict[str, object]:
    """The names and sums of two importance matrices. Runs in a worker."""
    import numpy as np

    from autoquant.backends.llamacpp.imatrix import read_imatrix

    a, b = read_imatrix(ours), read_imatrix(theirs)
    worst = max(float(np.abs(a[name] - b[name]).sum() / b[name].sum()) for name in set(a) & set(b))
    return {"tensors": len(set(a) & set(b)), "same": set(a) == set(b), "worst": worst}


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
