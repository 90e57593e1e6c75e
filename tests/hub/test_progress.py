"""Bars where somebody looks: in a notebook and on a terminal, and nowhere else."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from tests.fakes.hub import Hub
from tests.hub.conftest import MODEL, User

# IPython itself with what makes its shell a notebook's: a kernel. The page that would draw the bars
# is not there, so they come as text.
NOTEBOOK = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.kernel = object()
"""
RUN = f"""
import autoquant
result = autoquant.gguf("{MODEL}", types="Q8_0", pre_tokenizer="gpt-2", evaluate="off")
result.upload("tester/t")
"""


@pytest.mark.parametrize(("where", "shown"), [("notebook", True), ("script", False)])
def test_bars_in_a_notebook_and_not_in_a_script(
    where: str, shown: bool, user: User, hub: Hub
) -> None:
    hub.bandwidth = 20e6
    process = user.start_python((NOTEBOOK if where == "notebook" else "") + RUN)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert hub.files("tester/t") >= {"tiny-Q8_0.gguf"}
    for name in ("Downloading bytes", "2 of 2, quantize Q8_0: ", "tiny-Q8_0.gguf: ", " left"):
        assert (name in err) == shown, err
    assert ("%|" in err) == shown


def test_bars_on_a_terminal(user: User, hub: Hub) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    user.cwd.mkdir(parents=True)
    words = [
        sys.executable,
        "-m",
        "autoquant.cli",
        "quantize",
        "gguf",
        MODEL,
        "--pre-tokenizer",
        "gpt-2",
        "--types",
        "Q8_0",
        "--evaluate",
        "off",
        "--upload",
        "tester/t",
    ]
    process = subprocess.Popen(
        words, cwd=user.cwd, env=user.environment(), stdout=slave, stderr=slave
    )
    os.close(slave)
    said = b""
    while True:
        try:
            block = os.read(master, 1 << 16)
        except OSError:  # the terminal is gone with the process
            break
        said += block
    assert process.wait(60) == 0
    assert b"%|" in said
    assert b"uploaded and compared with the server" in said.replace(b"\r\n", b" ")
