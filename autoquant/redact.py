"""Tokens are never shown: errors, logs and journals pass through :func:`redact`."""

from __future__ import annotations

import logging
import os
import re

# Where a token can stand in the environment; worker processes do not get these variables.
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
# User and organization tokens as the Hub makes them; OAuth tokens hold dots and dashes too.
_TOKEN = re.compile(r"\b(?:hf_oauth_[\w.-]+|(?:hf|api_org)_[A-Za-z0-9]{16,})|(?<=Bearer )[^\s\"',]+")


def redact(text: str) -> str:
    """The text with everything that is, or looks like, a token replaced by <token>."""
    for name in TOKEN_VARIABLES:
        value = os.environ.get(name, "").strip()
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
