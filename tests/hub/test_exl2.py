"""EXL2 repositories: a branch for each bitrate, the measurement on main, and a measurement fetched
from there.
"""

from __future__ import annotations

import json
import os

import pytest

from autoquant.core.bundled import MODELS as DEMOS
from tests.conftest import STAND_IN
from tests.fakes.hub import Hub
from tests.hub.conftest import MODEL, User, checkpoint

QUICK = (
    "--calibration",
    "builtin",
    "--calibration-samples",
    "3",
    "--calibration-length",
    "64",
    "--measurement-samples",
    "2",
    "--evaluate",
    "off",
)
IN_BRANCH = {
    "config.json",
    "generation_config.json",
    "output.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "measurement.json",
    "README.md",
    "LICENSE",
}


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("AUTOQUANT_GUISE") == "colab",
    reason="branches are tested with that client elsewhere; this is about what lies in them",
)
def test_branches_with_the_measurement_on_main_from_where_it_serves_again(
    user: User, hub: Hub
) -> None:
    # one block: four would take four times as long
    hub.seed(MODEL, checkpoint(DEMOS["demo-small"]))
    user.run(
        "quantize",
        "exl2",
        MODEL,
        "--bpw",
        "4.5,6",
        *QUICK,
        "--upload",
        "tester/tiny-exl2",
        PYTHONPATH=STAND_IN,
    )
    repo = hub.repos["tester/tiny-exl2"]
    assert set(repo.branches) == {"main", "4.5bpw", "6.0bpw"}
    assert hub.files("tester/tiny-exl2") == {"measurement.json", "README.md", "LICENSE"}
    card = hub.content("tester/tiny-exl2", "README.md").decode()
    assert f"({hub.url}/tester/tiny-exl2/blob/4.5bpw/config.json)" in card
    assert "hf download tester/tiny-exl2 --revision 4.5bpw" in card
    assert {name for name in user.journal("tiny-EXL2") if name.startswith("upload ")} == {
        f"upload tester/tiny-exl2@{branch}" for branch in repo.branches
    }
    again = user.run("upload", "tiny-EXL2", "tester/tiny-exl2", "--dry-run").stdout
    assert "to send: 0 files" in again, "the method's own layout is the default here too"
    assert "branch 6.0bpw of tester/tiny-exl2" in again
    for name in ("config.json", "output.safetensors"):
        assert name in again
        assert f"4.5bpw/{name}" not in again, "not in a folder of its own inside its branch"

    user.run("upload", "tiny-EXL2", "tester/tiny", "--layout", "repo-per-type")
    assert hub.files("tester/tiny-6.0bpw") == IN_BRANCH
    assert "[config.json](./config.json)" in hub.content("tester/tiny-6.0bpw", "README.md").decode()

    user.run(
        "quantize",
        "exl2",
        MODEL,
        "--bpw",
        "5",
        *QUICK,
        "--measurement",
        "tester/tiny-exl2",
        "--out",
        "other",
        PYTHONPATH=STAND_IN,
        AUTOQUANT_CACHE=str(user.home / "new"),
    )
    measured = [
        json.loads((user.cwd / folder / "measurement.json").read_text())
        for folder in ("tiny-EXL2", "other")
    ]
    assert measured[0] == measured[1]
    assert not (user.home / "new" / "measurements").exists(), "nothing was measured"
    said = user.run(
        "quantize",
        "exl2",
        MODEL,
        "--measurement",
        "tester/tiny-6.0bpw@nowhere",
        "--out",
        "third",
        status=2,
        PYTHONPATH=STAND_IN,
    ).stderr
    assert "tester/tiny-6.0bpw" in said
    said = user.run(
        "quantize",
        "exl2",
        MODEL,
        "--measurement",
        MODEL,
        "--out",
        "third",
        status=2,
        PYTHONPATH=STAND_IN,
    ).stderr
    assert f"measurement: {MODEL} has no measurement.json" in said
