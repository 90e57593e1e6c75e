"""Pictures with sliders: their states, and what is there where no script runs."""

from __future__ import annotations

import base64
import json
import re
import xml.etree.ElementTree as tree
from collections.abc import Iterator

import numpy as np
import pytest

from autoquant.core import language
from autoquant.notebook import lesson, moving

WEIGHTS = np.random.default_rng(0).normal(size=32)


@pytest.fixture
def turkish() -> Iterator[None]:
    language.use("tr")
    yield
    language.use("en")


@pytest.fixture(params=["number line", "memory"])
def picture(request: pytest.FixtureRequest) -> moving.Moving:
    if request.param == "memory":
        return lesson.memory_slider(8.0)
    return lesson.number_line(WEIGHTS)


def test_without_a_script_the_first_state_is_an_image(picture: moving.Moving) -> None:
    shown = picture._repr_html_()
    image = re.search(
        r'<img alt="([^"]+)" width="\d+" src="data:image/svg\+xml;base64,([^"]+)">', shown
    )
    assert image
    assert image[1] == repr(picture)
    drawn = tree.fromstring(base64.b64decode(image[2]))
    assert len([*drawn.iter()]) > 10
    assert 'style="display:none"' in shown, "sliders that nothing would move are not shown"
    assert "widget" not in shown, "nothing of a kernel that may be gone"


def test_every_state_is_a_picture_of_its_own(picture: moving.Moving) -> None:
    frames = json.loads(
        re.search(r"frames = (\[.*\]), head = ", picture._repr_html_())[1]  # type: ignore[index]
    )
    stops = [len(slider.values) for slider in picture.sliders]
    assert len(frames) == np.prod(stops)
    assert len({body for body, _ in frames}) == len(frames)
    for body, caption in frames:
        tree.fromstring(f"{picture.head}{body}</svg>")
        assert caption


def test_one_page_may_show_a_picture_twice(picture: moving.Moving) -> None:
    names = [re.findall(r'id="(moving-\w+)"', picture._repr_html_()) for _ in range(2)]
    assert names[0] != names[1]


def test_the_number_line_rounds_as_the_lesson_says() -> None:
    after, levels = moving.rounded(WEIGHTS, 4, 1.0, False, 32)
    scale = np.abs(WEIGHTS).max() / 7
    assert np.allclose(after, np.round(WEIGHTS / scale) * scale)
    assert np.allclose(levels[0], np.arange(-7, 8) * scale)
    shifted, levels = moving.rounded(np.abs(WEIGHTS), 2, 1.0, True, 8)
    assert [len(one) for one in levels] == [4] * 4
    assert shifted.min() >= 0, "no code is spent on what is not there"
    clipped, _ = moving.rounded(WEIGHTS, 8, 0.5, False, 32)
    assert np.abs(clipped).max() == pytest.approx(np.abs(WEIGHTS).max() / 2)
    with pytest.raises(ValueError, match="32 weights, please, not 31"):
        lesson.number_line(WEIGHTS[:31])


def test_memory_beside_gpus() -> None:
    assert moving.memory(8)["FP16, BF16"] == 16.0
    said = repr(lesson.memory_slider(8.0))
    assert "T4 (16 GB) holds: INT8, 4 bits" in said, "16 GB of weights leave no room on a T4"
    assert "RTX 4090 (24 GB) holds: FP16, BF16" in said
    assert "A100 (80 GB) holds: FP32" in said
    assert "A100 (80 GB) holds: INT8" in repr(lesson.memory_slider(70))
    assert "9.5 billion" in repr(lesson.memory_slider(9.5)), "a model between the slider's stops"


def test_in_turkish(turkish: None) -> None:
    said = repr(lesson.memory_slider(8.0))
    assert "8 milyar parametreli" in said
    assert "T4 (16 GB) şunlara yeter: INT8, 4 bit, 3 bit, 2 bit;" in said
    line = lesson.number_line(WEIGHTS)
    assert [one.title for one in line.sliders][1:3] == ["kırpma", "sıfır noktası"]
    assert "kodların gösterebildikleri" in line.frames[0][0]


def test_texts_show_where_they_part() -> None:
    said = lesson.Texts("She", {"whole": " was so much", "8": " was so much", "2": " was sold <b>"})
    assert said.split("8") == (" was so much", "")
    assert said.split("2") == (" was ", "sold <b>")
    assert "sold &lt;b&gt;" in said._repr_html_()
    assert repr(said).splitlines()[2].strip() == "2: She was sold <b>"
