"""The command line as a stranger meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import autoquant as package
from autoquant import cli
from autoquant.result import Result

HEAVY = ("torch", "transformers", "llama_cpp", "gguf")


def autoquant(*arguments: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "autoquant.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        **kwargs,
    )  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    "statement",
    [
        "import autoquant",
        "import autoquant; autoquant.gguf; autoquant.plan",
        "from autoquant import result, cli",
    ],
)
def test_importing_loads_nothing_heavy(statement: str) -> None:
    code = f"{statement}; import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_bad_input_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = autoquant("quantize", "gguf", "demo", "--types", "Q4_KX", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("autoquant: error: types: 'Q4_KX' is no GGUF type; nearest: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["quantize", "gguf", "nowhere"],
        ["plan", "gguf", "owner/model"],
        ["quantize", "gguf", "demo", "--eval-chunks", "0"],
        ["quantize", "gguf", "demo", "--types", "IQ1_S"],
        ["evaluate", "x.gguf", "--reference", "demo"],
        ["evaluate", "x.gguf", "--reference", "demo", "--chunks", "no"],
    ],
)
def test_status_2(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_names_every_option() -> None:
    from autoquant.methods.gguf import GgufOptions

    text = autoquant("quantize", "gguf", "--help").stdout
    for name in GgufOptions.model_fields:
        assert f"--{name.replace('_', '-')}" in text
    assert "{" not in text


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["types"]) == 0
    listed = capsys.readouterr().out
    assert "Q4_K_M" in listed
    assert "needed" in listed
    assert cli.main(["methods"]) == 0
    assert "gguf" in capsys.readouterr().out


def test_plan_says_the_same_in_a_notebook() -> None:
    """All types at once: some lack an importance matrix, which the table says, and which is no
    verdict.
    """
    plan = package.plan("gguf", "demo", types=["Q8_0", "IQ2_XXS"])
    assert plan.refused
    assert str(plan).endswith("it fits")
    assert "✓ it fits" in plan._repr_html_()


def test_plan_shows_every_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "gguf", "demo", "--pre-tokenizer", "gpt-2"]) == 0
    out = capsys.readouterr().out
    assert "it fits" in out
    assert out.count("needed") == 9
    assert "4.2 million parameters" in out
    assert cli.main(["plan", "gguf", "demo", "--pure"]) == 0
    assert not {"F16", "BF16", "F32"} & {
        line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()
    }, "an unquantized type knows no mixture"


def test_the_card_names_the_command_that_was_run(tmp_path: Path) -> None:
    done = autoquant(
        "quantize",
        "gguf",
        "demo",
        "--pre-tokenizer",
        "gpt-2",
        "--types",
        "q4_k_m",
        "--evaluate",
        "off",
        "--out",
        str(tmp_path / "o"),
    )
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "o" / "README.md").read_text()
    assert "autoquant quantize gguf demo --evaluate off --pre-tokenizer gpt-2" in card.replace(
        "  ", " "
    )


def test_a_run_answers_a_prompt(demo: Result, capsys: pytest.CaptureFixture[str]) -> None:
    from autoquant.cli import main

    words = ["answer", str(demo.folder), "It was", "--type", "Q8_0", "--tokens", "4"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("It was\n")
    assert [line for line in said.splitlines() if line.startswith("---")] == [
        "--- unquantized",
        "--- Q8_0",
    ]
    assert main(["answer", str(demo.folder / "no"), "It was"]) == 2
