"""Calibration text from a dataset on the Hub: what is read, what is refused, that a run goes on
without the Hub.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.hub import TOKEN, Hub
from tests.hub.conftest import User

DATASET = "maker/texts"
README = b"""---
configs:
- config_name: tales
  data_files: [{split: train, path: tales.jsonl}, {split: test, path: other.jsonl}]
- config_name: verse
  data_files: verse.jsonl
---
"""
ASK = """
import json, sys
from autoquant import calibration
from autoquant.core.errors import AutoQuantError
from autoquant.core.options import build
values = json.loads(sys.argv[1])
try:
    built = build(calibration.CalibrationOptions, values)
    calibration.check(built)
    found = calibration.documents(built)
    print(json.dumps([found.texts, found.name]))
except AutoQuantError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def lines(*texts: str, column: str = "text") -> bytes:
    return "\n".join(json.dumps({column: text, "n": i}) for i, text in enumerate(texts)).encode()


@pytest.fixture
def texts(hub: Hub) -> str:
    return hub.seed(
        f"datasets/{DATASET}",
        {
            "README.md": README,
            "tales.jsonl": lines(*(f"Tale {i}. " + "Once upon a time. " * 20 for i in range(40))),
            "other.jsonl": lines("held out"),
            "verse.jsonl": lines("a verse", column="line"),
        },
    )


def ask(user: User, **values: Any) -> Any:
    return user.python(
        "import sys; sys.argv = ['',"
        f" {json.dumps(json.dumps({'calibration': DATASET, **values}))}]\n{ASK}"
    )


@pytest.mark.slow
def test_the_first_rows_of_a_split_at_one_commit(hub: Hub, user: User, texts: str) -> None:
    found, name = ask(
        user, calibration_subset="tales", calibration_samples=4, calibration_length=32
    )
    assert name == f"{DATASET}@{texts[:10]} tales train"
    assert found[0].startswith("Tale 0. Once")
    assert 8 <= len(found) < 12, "read until there is four times what the samples need, generously"
    assert ask(user, calibration_subset="verse", calibration_column="line")[0] == ["a verse"]
    assert ask(user, calibration_subset="tales", calibration_split="test")[0] == ["held out"]
    hub.seed(f"datasets/{DATASET}", {"other.jsonl": lines("changed")})
    assert ask(user, calibration_subset="tales", calibration_split="test")[0] == ["changed"]
    assert ask(
        user, calibration=f"{DATASET}@{texts}", calibration_subset="tales", calibration_split="test"
    )[0] == ["held out"]


def test_what_was_read_is_kept(hub: Hub, user: User, texts: str) -> None:
    first = ask(user, calibration_subset="tales")
    assert len(first[0]) == 40
    before = len(hub.requests(r"resolve"))
    assert ask(user, calibration_subset="tales") == first
    assert len(hub.requests(r"resolve")) == before
    hub.stop()
    assert ask(user, calibration_subset="tales") == first
    user.more["HF_HUB_OFFLINE"] = "1"
    assert ask(user, calibration_subset="tales") == first
    assert (
        "HF_HUB_OFFLINE is set, and that dataset has not been fetched before"
        in ask(user, calibration_subset="verse", calibration_column="line")[1]
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, r"calibration_subset: .*tales"),
        ({"calibration_subset": "tales", "calibration_split": "dev"}, r"calibration_split: .*dev"),
        (
            {"calibration_subset": "tales", "calibration_column": "body"},
            r"calibration_column: maker/texts has no column 'body'; it has: text, n",
        ),
        (
            {"calibration_subset": "tales", "calibration_column": "n"},
            r"calibration_column: column 'n' of maker/texts holds no text but int",
        ),
        ({"calibration": "maker/nothing"}, r"no repository datasets/maker/nothing"),
        ({"calibration": "nothing.txt"}, "no such file: nothing.txt; give .* a dataset on the Hub"),
        ({"calibration": "maker/texts@nowhere"}, "no such revision"),
    ],
)
def test_refusals_say_what_there_is(
    hub: Hub, user: User, texts: str, values: dict[str, Any], said: str
) -> None:
    import re

    kind, message = ask(user, **values)
    assert kind == "InputError", message
    assert re.search(said, message), message
    assert TOKEN not in message


def test_a_gated_dataset_needs_a_token_that_may_read_it(hub: Hub, user: User, texts: str) -> None:
    hub.repos[f"datasets/{DATASET}"].gated = True
    kind, message = ask(user, calibration_subset="tales")
    assert kind == "InputError", message
    hub.repos[f"datasets/{DATASET}"].allowed = {"tester"}
    assert len(ask(user, calibration_subset="tales")[0]) == 40


def test_an_importance_matrix_from_a_dataset_and_the_card_names_it(
    hub: Hub, user: User, texts: str
) -> None:
    user.quantize(
        "--imatrix",
        "calibration",
        "--calibration",
        DATASET,
        "--calibration-subset",
        "tales",
        "--calibration-samples",
        "3",
        "--calibration-length",
        "64",
    )
    card = (user.cwd / "tiny-GGUF" / "README.md").read_text()
    assert f"{DATASET}@{texts[:10]} tales train, 3 samples of 64 tokens" in card
    hub.stop()
    before = Path(user.cwd / "tiny-GGUF" / "imatrix.gguf").stat().st_mtime_ns
    user.quantize(
        "--imatrix",
        "calibration",
        "--calibration",
        DATASET,
        "--calibration-subset",
        "tales",
        "--calibration-samples",
        "3",
        "--calibration-length",
        "64",
    )
    assert Path(user.cwd / "tiny-GGUF" / "imatrix.gguf").stat().st_mtime_ns == before, (
        "a finished run needs no Hub"
    )
