"""What fits on a device, and the commands that start it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import autoquant
from autoquant import cli
from autoquant.core.bundled import MODEL
from autoquant.core.errors import InputError
from autoquant.core.records import Source
from autoquant.runtime import preload
from autoquant.sizing import advice, choices
from autoquant.sizing.asked import File
from autoquant.sizing.devices import GIB, device
from autoquant.sizing.memory import Beside
from autoquant.source import resolve
from bench import methods
from tests.workers import in_worker

LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A source with the shapes of Llama-3.1-8B, without its weights."""
    folder = tmp_path_factory.mktemp("Llama")
    methods.llama(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | LLAMA))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(MODEL / name, folder / name)
    return dataclasses.replace(resolve(folder), id="owner/Llama-8B", revision="0" * 40)


def told(source: Source, fits: str, context: int = 8192, kv_type: str = "f16") -> advice.Advice:
    with preload.kept():
        return advice.advise(source, device(fits), context, kv_type, pre_tokenizer="gpt-2")


def test_the_demo_model_on_a_card() -> None:
    said = autoquant.advise("demo", fits="t4")
    assert isinstance(said, autoquant.Advice)
    assert said.context == 256, "the model's own is less than 8192"
    assert said.beside.asked
    best = said.best
    assert best is not None
    assert (best.method, best.type, best.fits, best.exact) == ("gguf", "Q8_0", "whole", True)
    made = {one.type: one.bytes for one in autoquant.plan("gguf", "demo").items}
    assert all(made.get(one.type, one.weights) == one.weights for one in said.choices)
    assert {one.method for one in said.choices} == {*_methods()}
    text = str(said)
    assert "the context is 256 tokens: name another with --context" in text
    assert "take gguf Q8_0: the most bits per weight that fit whole, 15.02 GB to spare" in text
    shown = said._repr_html_()
    assert "<td" in shown
    assert "llama-server -m ./tiny-austen-4m-GGUF/tiny-austen-4m-Q8_0.gguf -c 256" in shown


def _methods() -> list[str]:
    from autoquant.methods import METHODS

    return list(METHODS)


def test_a_large_model_on_a_small_card(llama: Source) -> None:
    """8 GB: Q6_K is too large whole beside a cache of 1 GiB; Q4_K_M is not."""
    said = told(llama, "RTX 4060")
    fits = {one.type: one.fits for one in said.choices if one.method == "gguf"}
    assert (fits["Q8_0"], fits["Q6_K"], fits["Q4_K_M"]) == ("partly", "partly", "whole")
    best = said.best
    assert best is not None
    assert best.type == "Q5_K_M"
    assert best.memory == best.weights + said.beside.total <= said.device.usable
    assert best.weights <= said.room
    assert said.commands[:2] == (
        "autoquant quantize gguf owner/Llama-8B --types Q5_K_M --modelfile --pre-tokenizer gpt-2",
        "llama-server -m ./Llama-8B-GGUF/Llama-8B-Q5_K_M.gguf -c 8192 -np 1 -ngl 99",
    )
    order = [one.fits for one in said.choices]
    assert order == sorted(order, key=("whole", "partly", "no").index)
    partly = next(one for one in said.choices if one.type == "Q8_0")
    assert 1 < partly.layers < 33
    assert 0 < partly.elsewhere < partly.memory
    # 4-bit weights fit, but not with what vLLM wants of an 8 GB card
    assert next(one for one in said.choices if one.method == "awq").fits == "no"
    assert (
        "vllm serve ./Llama-8B-W8A8-int8-dynamic --max-model-len 8192" in told(llama, "L4").commands
    )


def test_a_quantized_cache_makes_room(llama: Source) -> None:
    whole, half = told(llama, "8GB laptop", 16384), told(llama, "8GB laptop", 16384, "q8_0")
    assert half.beside.cache * 32 == pytest.approx(whole.beside.cache * 17, rel=1e-3)
    assert half.room > whole.room
    assert any(line.endswith("-c 16384 -np 1 -fa on -ctk q8_0 -ctv q8_0") for line in half.commands)
    assert not any("-ngl" in line for line in half.commands), "a laptop without a GPU"
    assert {one.method for one in half.choices} == {"gguf"}
    assert "want an NVIDIA GPU" in str(half)


def test_a_mac_takes_all_layers(llama: Source) -> None:
    said = told(llama, "MacBook 16GB")
    assert said.best is not None
    assert said.best.type == "Q8_0"
    assert said.commands[1].endswith("-c 8192 -np 1 -ngl 99")


def test_nothing_fits(llama: Source) -> None:
    said = told(llama, "MacBook 8GB", 131072)
    assert said.best is None
    assert said.commands == ()
    assert "nothing fits: the smallest needs " in str(said)
    with pytest.raises(InputError, match=r"a context of 131,072 tokens takes 17\.4. GB beside"):
        advice.room_for(llama, device("MacBook 8GB"), ("Q8_0",), 131072, pre_tokenizer="gpt-2")


def test_a_card_that_is_too_small_for_any_whole_type(llama: Source) -> None:
    said = told(llama, "RTX 3070", 49152)
    assert said.best is not None
    assert said.best.fits == "partly"
    assert "nothing fits whole; of Q4_K_M, " in str(said)
    assert f"-ngl {said.best.layers}" in said.commands[1]


def test_layers_go_to_the_card_from_the_last() -> None:
    """The output layer is one of them; keys and values go with their blocks."""
    file = File("Q8_0", 1000, 8.5, False, blocks=(200, 200, 100, 100), largest=50)
    beside = Beside(cache=40, state=0, compute=10)
    assert choices.on_card(file, beside, 2000) == (5, 460 + 640)
    assert choices.on_card(file, beside, 460 + 220) == (3, 460 + 220)
    assert choices.on_card(file, beside, 460 + 219) == (2, 460 + 110)
    assert choices.on_card(file, beside, 460 + 109) == (0, 0)
    assert choices.on_card(file, beside, 459) == (0, 0)
    sees = dataclasses.replace(beside, tower=60)
    assert choices.on_card(file, sees, 460 + 220 + 60) == (3, 460 + 220 + 60), "that goes first"


def test_what_a_model_sees_with_takes_room(tmp_path: Path) -> None:
    folder = tmp_path / "sees"
    in_worker("bench.cases.architectures:make", tmp_path, name="gemma3_vision", folder=str(folder))
    said = autoquant.advise(folder, fits="T4", context=128)
    run = autoquant.gguf(folder, types=["Q8_0"], out=tmp_path / "out", evaluate="off")
    (mmproj,) = (tmp_path / "out").glob("mmproj-*.gguf")
    assert said.beside.tower == mmproj.stat().st_size
    assert said.room == 14 * GIB - said.beside.total
    source = resolve(folder)
    room, _ = advice.room_for(source, device("T4"), ("Q8_0",), 128, mmproj=False)
    assert room == said.room + said.beside.tower
    assert f"--mmproj ./sees-GGUF/{mmproj.name}" in said.commands[1]
    assert "for what it sees or hears with" in " ".join(str(said).split())
    whole = {one.type: one.weights for one in said.choices if one.method == "gguf"}
    assert whole["Q8_0"] == run.path("Q8_0").stat().st_size, "which is not in the file itself"
    shutil.copyfile(mmproj, mmproj.with_name("mmproj-another-F16.gguf"))
    again = autoquant.advise(run.path("Q8_0"), fits="T4", context=128)
    assert again.beside.tower == said.beside.tower
    assert f"--mmproj {mmproj}" in again.commands[0]


def test_the_room_for_weights(llama: Source) -> None:
    def of(*context: int) -> int:
        return advice.room_for(llama, device("T4"), ("Q8_0",), *context, pre_tokenizer="gpt-2")[0]

    room = of(8192)
    assert room == told(llama, "T4").room
    assert room == pytest.approx(14 * GIB - GIB - 124.5 * 2**20, abs=2**16)
    more = of(4096)
    assert more > room
    assert of() == room


def test_without_llama_cpp_it_is_computed_and_says_so(llama: Source) -> None:
    """The bundled tokenizer is not named, so the converter refuses the model."""
    with preload.kept():
        said = advice.advise(llama, device("T4"), 8192)
    assert not said.beside.asked
    assert said.beside.cache == 1 << 30
    assert not any(one.exact for one in said.choices)
    (note,) = [note for note in said.notes if note.startswith("all sizes are computed from config")]
    assert "llama.cpp does not know the pre-tokenizer" in note
    exact = {one.type: one.weights for one in told(llama, "T4").choices}
    for one in said.choices:
        assert one.weights == pytest.approx(exact[one.type], rel=0.01)


def test_a_gguf_file(tmp_path: Path) -> None:
    autoquant.gguf("demo", types=["Q8_0"], out=tmp_path / "out", evaluate="off")
    file = next((tmp_path / "out").glob("*Q8_0.gguf"))
    said = autoquant.advise(file, fits="8GB laptop", context=128)
    assert said.beside.asked
    assert {one.method for one in said.choices} == {"gguf"}
    assert said.best is not None
    assert (said.best.type, said.best.weights) == ("Q8_0", file.stat().st_size), "as it is"
    assert said.commands == (f"llama-server -m {file} -c 128 -np 1",)
    autoquant.gguf("demo", types=["Q4_K_M"], out=tmp_path / "small", evaluate="off")
    small = autoquant.advise(next((tmp_path / "small").glob("*.gguf")), fits="8GB laptop")
    assert all(one.bits <= small.choices[0].bits for one in small.choices), "nothing larger"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"fits": "RTX 4091"}, "'RTX 4091' is no device that is known; nearest: RTX 4090"),
        (
            {"context": 257},
            "257 tokens are more than tiny-austen-4m was made for; allowed: 1 to 256",
        ),
        ({"context": 0}, "context: 0 is no number of tokens; allowed: 1 to 256 tokens"),
        ({"kv_type": "q8"}, "kv_type: 'q8' is not allowed; allowed: f16, q8_0, q4_0"),
    ],
)
def test_bad_input_is_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(InputError) as caught:
        autoquant.advise("demo", **{"fits": "T4", **values})
    assert says in str(caught.value)


def test_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["advise", "demo", "--context", "128"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("tiny-austen-4m on this machine")
    assert "for a context of 128 tokens" in out
    assert cli.main(["advise", "demo", "--context", "many"]) == 2
    assert "context: 'many' is no number of tokens" in capsys.readouterr().err
    assert cli.main(["devices"]) == 0
    assert "RTX 4090" in capsys.readouterr().out


def test_asking_for_devices_loads_nothing_heavy() -> None:
    code = (
        "from autoquant.sizing import advice, devices; devices.device('T4'); import sys;"
        "print([n for n in ('torch', 'transformers', 'llama_cpp', 'gguf') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
