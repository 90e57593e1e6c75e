"""Tokens are never shown: errors, logs and journals pass through :func:`redact`."""

from __future__ import annotations

import logging
import os
import re

# Where a token can stand in the environment; worker processes do not get these variables.
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SECRETS: set[str] = set()  # of this process; they may have any shape
# User and organization tokens as the Hub makes them; OAuth and OIDC tokens hold dots and dashes
# too.
_TOKEN = re.compile(
    r"\b(?:hf_(?:oauth|jwt)_[\w.-]+|(?:hf|api_org)_[A-Za-z0-9]{16,})|(?<=Bearer )[^\s\"',]+"
)


def remember(secret: str) -> None:
    """Take this secret out of every text from now on."""
    _SECRETS.add(secret)


def redact(text: str) -> str:
    """The text with everything that is, or looks like, a token replaced by <token>."""
    for value in (*_SECRETS, *(os.environ.get(name, "").strip() for name in TOKEN_VARIABLES)):
        if len(value) >= 8:
            text = text.replace(value, "<token>")
    return _TOKEN.sub("<token>", text)


class RedactingFilter(logging.Filter):
    """Takes tokens out of every record that passes a handler, arguments and traceback included."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; always lets it pass."""
        record.msg, record.args = redact(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True
