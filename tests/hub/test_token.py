"""Where the token comes from, and the field for it in a notebook."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoquant.core.redact import redact
from tests.fakes.hub import TOKEN, Hub
from tests.hub.conftest import User

FAKES = str(Path(__file__).parents[1] / "fakes")
SECRET, ENVIRONMENT, STORED = (f"hf_{name * 6}" for name in ("Secret", "Enviro", "Stored"))
FIND = """
import json
from autoquant.hub.client import find_token
token = find_token()
print(json.dumps([token.value, token.origin, repr(token)] if token else None))"""


# IPython's shell with what makes it a notebook's.
NOTEBOOK = """
from IPython.core.interactiveshell import InteractiveShell
InteractiveShell.instance().kernel = object()
"""


@pytest.mark.parametrize(
    ("where", "secrets", "environment", "stored", "wanted", "origin"),
    [
        ("colab", {"HF_TOKEN": SECRET}, ENVIRONMENT, STORED, SECRET, "the Colab secret HF_TOKEN"),
        (
            "colab",
            {"HF_TOKEN": "refused"},
            ENVIRONMENT,
            STORED,
            ENVIRONMENT,
            "the environment variable HF_TOKEN",
        ),
        (
            "colab",
            {"HF_TOKEN": "timeout"},
            "",
            STORED,
            STORED,
            "the login stored by `hf auth login`",
        ),
        ("colab", {}, "", "", None, None),
        (
            "colab command",
            {"HF_TOKEN": SECRET},
            ENVIRONMENT,
            "",
            ENVIRONMENT,
            "the environment variable HF_TOKEN",
        ),
        ("colab command", {"HF_TOKEN": SECRET}, "", "", None, None),
        (
            "elsewhere",
            {"HF_TOKEN": SECRET},
            ENVIRONMENT,
            STORED,
            ENVIRONMENT,
            "the environment variable HF_TOKEN",
        ),
        ("elsewhere", {}, "", STORED, STORED, "the login stored by `hf auth login`"),
        ("elsewhere", {}, "", "", None, None),
    ],
)
def test_the_order(
    where: str,
    secrets: dict[str, str],
    environment: str,
    stored: str,
    wanted: str | None,
    origin: str | None,
    user: User,
) -> None:
    """A command behind "!" in Colab has no page to ask for the secret."""
    if stored:
        (user.home / "hf").mkdir(parents=True)
        (user.home / "hf" / "token").write_text(stored)
    found = user.python(
        (NOTEBOOK if where != "colab command" else "") + FIND,
        HF_TOKEN=environment,
        PYTHONPATH=FAKES,
        FAKE_COLAB_SECRETS=json.dumps(secrets),
        COLAB_RELEASE_TAG="release-colab" if "colab" in where else "",
    )
    assert (found[:2] if found else [None, None]) == [wanted, origin]
    assert not found or wanted not in found[2]


@pytest.mark.parametrize(
    "text",
    [
        f"Bearer {TOKEN}",
        f"https://user:{TOKEN}@host/x",
        f'{{"token": "{TOKEN}"}}',
        "hf_oauth_eyJhbGciOi.JFZERTQSJ9_x-y.z",
        "hf_jwt_eyJhbGciOi.JFZ-x_y.z",
        "api_org_" + "a" * 30,
    ],
)
def test_redacting(text: str) -> None:
    assert "<token>" in redact(text)
    assert TOKEN not in redact(text)
    assert "eyJ" not in redact(text)


def test_redacting_leaves_other_words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "hf_hub_download of hf_transfer, HF_TOKEN is set, huggingface_hub 2.4"
    assert redact(text) == text
    monkeypatch.setenv("HF_TOKEN", "a-token-of-another-shape")
    assert redact("got a-token-of-another-shape!") == "got <token>!"


def test_log_records_are_redacted_with_arguments_and_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import logging
    import sys

    from autoquant.core.redact import RedactingFilter

    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RedactingFilter())
    logger = logging.getLogger("a test of redacting")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        raise ValueError(f"refused {TOKEN}")
    except ValueError:
        logger.exception("with %s", TOKEN)
    said = capsys.readouterr().err
    assert TOKEN not in said
    assert "with <token>" in said
    assert "ValueError: refused <token>" in said


def test_the_form_for_a_token(user: User, hub: Hub) -> None:
    """A wrong one is refused and stored nowhere; a right one is stored; the field is empty
    afterwards.
    """
    seen = user.python(
        """
import json, contextlib, io
from pathlib import Path
from autoquant.notebook import forms
from autoquant.hub.client import find_token
from huggingface_hub import constants
with contextlib.redirect_stdout(io.StringIO()):
    box = forms.login()
    (field, button), said = box.children[0].children, box.children[1]
    out = [said.value]
    for token in ("", "hf_" + "Wrong" * 6, "TESTER"):
        field.value = token
        button.click()
        out += [said.value, field.value, Path(constants.HF_TOKEN_PATH).exists()]
print(json.dumps([*out, find_token().origin]))""".replace("TESTER", TOKEN),
        HF_TOKEN="",
    )
    assert hub.url in seen[0]
    assert seen[1:4] == ["Paste a token first.", "", False]
    assert seen[4].startswith("Not accepted (")
    assert "Wrong" not in seen[4]
    assert seen[5:7] == ["", False]
    assert seen[7:] == [
        "Logged in as <b>tester</b>.",
        "",
        True,
        "the login stored by `hf auth login`",
    ]


@pytest.mark.parametrize("word", ["login", "logout", "whoami"])
def test_logging_in_is_left_to_huggingface_hub(word: str, user: User) -> None:
    assert f"use huggingface_hub's: hf auth {word}" in user.run(word, status=2).stderr
