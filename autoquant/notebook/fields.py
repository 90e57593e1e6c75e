"""One field of a form: its widget, and what stands beside it."""

from __future__ import annotations

import html
import re
from copy import copy
from typing import Any

from pydantic.fields import FieldInfo

from autoquant.core import options
from autoquant.core.language import told
from autoquant.notebook.cells import about
from autoquant.notebook.form_options import PRESETS
from autoquant.notebook.page import tooltip
from autoquant.sizing import devices

NOTE = "line-height:1.3;color:var(--jp-ui-font-color2,#555);font-size:12px"
MODELS = ("model", "small", "large")  # fields that name one: looked at when it has been typed
SHORT = 150  # letters of help that are shown at once: four lines beside a field
LEAST = 19  # fewer letters say nothing
# what stands before an option of one method of several, which is shown when that is ticked
IF_NAMED = r"^if \w+ is named: "


def _unit(field: FieldInfo) -> str:
    """An option's unit in brackets, unless its help names it."""
    extra = field.json_schema_extra
    unit = str(extra.get("unit", "")) if isinstance(extra, dict) else ""
    return f" ({told(unit)})" if unit and unit not in str(field.description) else ""


def parted(text: str) -> tuple[str, str]:
    """A help as what is shown at once and the rest, which is empty of a short one: cut where a
    sentence or a clause ends outside brackets, else before the values that it lists.
    """
    if len(text) <= SHORT:
        return text, ""
    outside, inside = text, re.compile(r"\([^()]*\)")
    while inside.search(outside):  # brackets in brackets
        outside = inside.sub(lambda found: "_" * len(found[0]), outside)
    ends = [found.end() for found in re.finditer(r"(?<!e\.g)[.;] ", outside)]
    lists = [found.end() for found in re.finditer(": ", outside) if found.end() >= LEAST]
    cut = max((end for end in ends if end <= SHORT), default=0) or min(lists, default=len(text))
    return text[:cut], text[cut:]


def help(name: str, field: FieldInfo) -> str:
    """What an option is for, as HTML beside its field: the first sentence of a long help, which
    opens to the rest. The field's tooltip has the whole.
    """
    asked = copy(field)
    asked.description = re.sub(IF_NAMED, "", str(field.description))
    said = f"{about(name, asked)}{_unit(field)}"
    first, rest = (
        re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(part)) for part in parted(said)
    )
    if not rest:
        return f'<div style="{NOTE}">{first}</div>'
    shown = f'<summary style="cursor:pointer">{first.rstrip(" ;:.")} …</summary>'
    return f'<details style="{NOTE}">{shown}{rest}</details>'


def widget(name: str, field: FieldInfo, value: Any) -> Any:
    """The widget of one option."""
    import ipywidgets

    look: dict[str, Any] = {
        "description": name,
        "style": {"description_width": "13em"},
        "layout": {"width": "38em", "flex": "0 1 38em"},
    }
    offered, free = options.choices(field)
    if field.annotation is float and type(value) is int:
        value = float(value)  # 0 in a parameters cell
    if name == "device":
        offered = [*PRESETS, *(one.name for one in devices.table() if one.name not in PRESETS)]
    widget: Any
    if field.annotation in (bool, int, float) and type(value) is not field.annotation:
        # it is wrong, or a text from papermill: shown as it is, and looked at by the options
        widget = ipywidgets.Text(value=str(value), continuous_update=True, **look)
    elif field.annotation is bool:
        widget = ipywidgets.Checkbox(value=value, indent=True, **look)
    elif offered and not free and value in offered:
        widget = ipywidgets.Dropdown(options=offered, value=value, **look)
    elif field.annotation is float:
        widget = ipywidgets.FloatText(value=value, continuous_update=True, step=0.01, **look)
    elif field.annotation is int:
        widget = ipywidgets.IntText(value=value, continuous_update=True, **look)
    elif offered:
        # a model is looked for when its name is complete
        widget = ipywidgets.Combobox(
            value=str(value),
            options=[str(one) for one in offered],
            ensure_option=False,
            continuous_update=name not in MODELS,
            **look,
        )
    elif name == "models":  # long names, with commas between
        widget = ipywidgets.Textarea(value=str(value), rows=3, continuous_update=True, **look)
    else:
        widget = ipywidgets.Text(value=str(value), continuous_update=True, **look)
    tooltip(widget, about(name, field))
    return widget
