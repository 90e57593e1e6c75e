"""What fits, of models on the Hub: headers are enough."""

from __future__ import annotations

from tests.fakes.hub import Hub
from tests.hub.conftest import MODEL, User

ASKED = ("--fits", "T4", "--pre-tokenizer", "gpt-2")


def test_advice_fetches_no_weight(user: User, hub: Hub) -> None:
    out = user.run("advise", MODEL, *ASKED).stdout
    assert hub.served < 400_000, "config, tokenizer, card and the header of the weights"
    assert out.startswith("maker/tiny on T4: 15.03 GB of 16.11 GB can be used")
    assert "autoquant quantize gguf maker/tiny --types Q8_0 --modelfile" in out
    local = user.run("advise", "demo", *ASKED).stdout
    rows = [line for line in out.splitlines() if line.startswith("gguf ")]
    assert rows == [line for line in local.splitlines() if line.startswith("gguf ")]
    assert list(user.cwd.iterdir()) == [], "nothing is written"
    assert (
        "there is no repository maker/other"
        in user.run("advise", "maker/other", *ASKED, status=2).stderr
    )


def test_a_gguf_file_on_the_hub(user: User, hub: Hub) -> None:
    user.quantize("--upload", "tester/tiny-GGUF")
    before = hub.served
    out = user.run("advise", "tester/tiny-GGUF:Q4_K_M", "--fits", "8GB laptop").stdout
    assert hub.served - before < 1_200_000, "the first MiB, which has the head"
    assert "llama-server -hf tester/tiny-GGUF:Q4_K_M -c 256 -np 1" in out
