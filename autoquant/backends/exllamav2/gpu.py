"""What exllamav2 needs of a machine, looked at in a worker process (and there only: the tests'
stand-in for a GPU hooks this module's import).
"""

from __future__ import annotations

from typing import Any

from autoquant.backends import extension


def look() -> dict[str, Any]:
    """Whether torch finds a GPU, and whether exllamav2's compiled extension is here or can be
    compiled.
    """
    return extension.look("exllamav2_ext")


def build() -> str:
    """Import exllamav2, which compiles its extension unless that has been done (5 to 10 minutes on
    Colab; kept in torch's extension cache). Returns its version.
    """
    import exllamav2

    return str(exllamav2.__version__)
