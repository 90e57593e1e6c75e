"""A form's widgets in Jupyter. They hold values; cells do the work."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic.fields import FieldInfo

from autoquant.core import options
from autoquant.core.errors import AutoQuantError, InputError
from autoquant.methods import METHODS
from autoquant.notebook.cells import about
from autoquant.notebook.form_options import TITLES, meant
from autoquant.notebook.page import tooltip

NOTE = "line-height:1.3;color:var(--jp-ui-font-color2,#555);font-size:12px"
GOOD, BAD = "--jp-success-color1,#2e7d32", "--jp-error-color1,#b00020"


class Form(Protocol):
    """What widgets need of a form (notebook.forms.Form)."""

    name: str
    fields: dict[str, FieldInfo]
    folded: list[str]
    initial: dict[str, Any]

    def check(self) -> None:
        """Raise InputError if a value cannot be as it is."""

    def plans(self) -> list[tuple[str, str, dict[str, Any]]]:
        """The runs to plan: method, model and options."""
        ...


def _unit(field: FieldInfo) -> str:
    """An option's unit in brackets, unless its help names it."""
    extra = field.json_schema_extra
    unit = str(extra.get("unit", "")) if isinstance(extra, dict) else ""
    return f" ({unit})" if unit and unit not in str(field.description) else ""


def _refusal(error: Exception) -> str:
    said = html.escape(str(error))
    return f'<span role="alert" style="color:var({BAD})">✗ {said}</span>'


class Widgets:
    """The widgets of a form, by option; ``box`` shows them."""

    def __init__(self, form: Form, values: Mapping[str, Any]) -> None:
        import ipywidgets

        self._form = form
        self.by_name = {
            name: widget(name, field, values[name]) for name, field in form.fields.items()
        }
        rows = {name: self._row(name, field) for name, field in form.fields.items()}
        folded = ipywidgets.VBox([rows[name] for name in form.folded])
        more = ipywidgets.Accordion([folded], selected_index=None)
        more.set_title(0, f"More options ({len(form.folded)}; the defaults are sensible)")
        self.said, self.planned = ipywidgets.HTML(), ipywidgets.HTML()
        plan = ipywidgets.Button(
            description="Will it fit?", icon="balance-scale", layout={"width": "10em"}
        )
        tooltip(
            plan,
            "show the size and the memory that this would need, for the chosen model; downloads no"
            " weights, writes nothing",
        )
        plan.on_click(lambda _: self.plan())
        title = html.escape(TITLES.get(form.name) or METHODS[form.name].title)
        shown = [row for name, row in rows.items() if name not in form.folded]
        self.box = ipywidgets.VBox(
            [ipywidgets.HTML(f"<b>{title}</b>"), *shown, more, self.said, plan, self.planned],
            layout={"border": "1px solid var(--jp-border-color2,#ccc)", "padding": "8px 12px"},
        )

    def _row(self, name: str, field: FieldInfo) -> Any:
        """An option's widget, with its help beside it."""
        import ipywidgets

        widget = self.by_name[name]
        widget.observe(lambda _: self.changed(), "value")
        help = ipywidgets.HTML(
            f'<div style="{NOTE}">{html.escape(about(name, field))}{_unit(field)}</div>',
            layout={"flex": "1 1 20em"},
        )
        layout = {"align_items": "center", "margin": "0 0 4px 0"}
        return ipywidgets.HBox([widget, help], layout=layout)

    def typed(self) -> dict[str, Any]:
        """What the widgets say now where it is not what they began with."""
        initial = self._form.initial
        return {
            name: widget.value
            for name, widget in self.by_name.items()
            if widget.value != _shown(initial[name], widget)
        }

    def changed(self) -> None:
        """Look at the values as they are typed: say what is wrong, grey out what has no effect
        beside the others.
        """
        now = stripped({name: widget.value for name, widget in self.by_name.items()})
        for name, widget in self.by_name.items():
            widget.disabled = not meant(self._form.name, name, now)
        try:
            self._form.check()
            self.said.value = (
                f'<span role="status" style="color:var({GOOD})">✓ the values are valid; run the'
                " next cells to use them</span>"
            )
        except InputError as error:
            self.said.value = _refusal(error)
        self.planned.value = ""

    def plan(self) -> None:
        """Show what a run would make and need."""
        from autoquant import result
        from autoquant.display import html as shown

        self.planned.value = '<span role="status">looking at the model …</span>'
        try:
            plans = [
                result.plan(METHODS[method], model, out=Path.cwd() / "run", values=values)
                for method, model, values in self._form.plans()
            ]
            self.planned.value = "".join(
                shown.plan(plan, METHODS[plan.method].title) for plan in plans
            )
        except (AutoQuantError, OSError) as error:
            self.planned.value = _refusal(error)


def _shown(value: Any, widget: Any) -> Any:
    """A value of the parameters cell as its widget has it."""
    return str(value) if isinstance(widget.value, str) else value


def stripped(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values without blanks around texts."""
    return {
        one: value.strip() if isinstance(value, str) else value for one, value in values.items()
    }


def widget(name: str, field: FieldInfo, value: Any) -> Any:
    """The widget of one option."""
    import ipywidgets

    look: dict[str, Any] = {
        "description": name,
        "style": {"description_width": "13em"},
        "layout": {"width": "38em", "flex": "0 1 38em"},
    }
    offered, free = options.choices(field)
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
        widget = ipywidgets.Combobox(
            value=str(value), options=[str(one) for one in offered], ensure_option=False, **look
        )
    else:
        widget = ipywidgets.Text(value=str(value), continuous_update=True, **look)
    tooltip(widget, about(name, field))
    return widget
