"""Colab's secrets. FAKE_COLAB_SECRETS is a JSON object of them; a value of "refused" or "timeout"
raises as Colab does.
"""

import json
import os


class SecretNotFoundError(Exception):
    """There is no such secret."""


class NotebookAccessError(Exception):
    """The notebook may not read it."""


class TimeoutException(Exception):
    """Nobody answered the question whether it may."""


def get(key: str) -> str:
    """The value of a secret."""
    import IPython

    IPython.get_ipython().kernel  # noqa: B018 (Colab asks its page through the kernel: in a process behind "!" this raises AttributeError)
    secrets = json.loads(os.environ.get("FAKE_COLAB_SECRETS", "{}"))
    if key not in secrets:
        raise SecretNotFoundError(key)
    if secrets[key] == "refused":
        raise NotebookAccessError(key)
    if secrets[key] == "timeout":
        raise TimeoutException(key)
    return secrets[key]
