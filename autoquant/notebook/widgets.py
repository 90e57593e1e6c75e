"""A form's widgets in Jupyter. They hold values; cells do the work."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic.fields import FieldInfo

from autoquant.core import options
from autoquant.core.errors import AutoQuantError, HubFailed, InputError
from autoquant.core.language import say, told
from autoquant.core.machine import nvidia_gpu
from autoquant.display import tables
from autoquant.hub.client import offline
from autoquant.methods import METHODS
from autoquant.notebook import choosing, fields, ticks
from autoquant.notebook.form_options import TITLES, meant
from autoquant.notebook.page import DEFAULTS, tooltip
from autoquant.notebook.planned import Plans
from autoquant.sizing.choices import Choice
from autoquant.source import resolve

GOOD, BAD = "--jp-success-color1,#2e7d32", "--jp-error-color1,#b00020"


class Form(Protocol):
    """What widgets need of a form (notebook.forms.Form)."""

    name: str
    fields: dict[str, FieldInfo]
    folded: list[str]
    initial: dict[str, Any]

    @property
    def model(self) -> str:
        """The model that is asked for."""
        ...

    @property
    def options(self) -> Any:
        """All values, checked."""
        ...

    def check(self) -> None:
        """Raise InputError if a value cannot be as it is."""

    def plans(self) -> list[tuple[str, str, dict[str, Any]]]:
        """The runs to plan: method, model and options."""
        ...


def _refusal(error: Exception | str) -> str:
    said = html.escape(told(str(error)))
    return f'<div role="alert" style="line-height:1.3;color:var({BAD})">✗ {said}</div>'


class Widgets:
    """The widgets of a form, by option; ``box`` shows them."""

    def __init__(self, form: Form, values: Mapping[str, Any]) -> None:
        import ipywidgets

        self._form = form
        self.by_name: dict[str, Any] = {
            name: (
                _methods(values[name])
                if name == "methods"
                else fields.widget(name, field, values[name])
            )
            for name, field in form.fields.items()
        }
        self.helps: dict[str, Any] = {}
        self.seen: dict[str, str] = {}  # what was said of a model, by its field
        self.rows = {name: self._row(name, field) for name, field in form.fields.items()}
        folded = ipywidgets.VBox([self.rows[name] for name in form.folded])
        more = ipywidgets.Accordion([folded], selected_index=None)
        more.set_title(
            0, say("More options ({count}; the defaults are sensible)", count=len(form.folded))
        )
        self.said, self.planned = ipywidgets.HTML(), ipywidgets.HTML()
        self.advised = ipywidgets.VBox([])
        title = html.escape(told(TITLES.get(form.name) or METHODS[form.name].title))
        shown = [row for name, row in self.rows.items() if name not in form.folded]
        if "device" in form.fields:
            fits = _button(
                say("What fits there?"),
                "mobile",
                say(
                    "show all types that this model can have, what fits on the device, and tick"
                    " what to make; downloads no weights"
                ),
            )
            fits.on_click(lambda _: self.advise())
            last = "device" if "context" in form.folded else "context"
            at = list(form.fields).index(last) + 1
            shown.insert(at, ipywidgets.VBox([fits, self.advised]))
        plan = _button(
            say("Will it fit?"),
            "balance-scale",
            say(
                "show the size and the memory that this would need, for the chosen model; downloads"
                " no weights, writes nothing"
            ),
        )
        plan.on_click(lambda _: self.plan())
        self.box = ipywidgets.VBox(
            [ipywidgets.HTML(f"<b>{title}</b>"), *shown, more, self.said, plan, self.planned],
            layout={"border": "1px solid var(--jp-border-color2,#ccc)", "padding": "8px 12px"},
        )

    def _row(self, name: str, field: FieldInfo) -> Any:
        """An option's widget, with its help beside it."""
        import ipywidgets

        widget = self.by_name[name]
        self.helps[name] = ipywidgets.HTML(layout={"flex": "1 1 20em"})
        self._help(name)
        if name in fields.MODELS:
            widget.observe(lambda _: self.look(name), "value")
        widget.observe(lambda _: self.changed(), "value")
        layout = {"align_items": "center", "margin": "0 0 4px 0", "flex_flow": "row wrap"}
        return ipywidgets.HBox([getattr(widget, "box", widget), self.helps[name]], layout=layout)

    def _help(self, name: str, wrong: str = "") -> None:
        """Beside a field: what is wrong with its value, or what it is for."""
        field = self._form.fields[name]
        said = _refusal(wrong) if wrong else self.seen.get(name, "")
        if name == "methods" and (lacking := _lacking()):
            said += f"<div>{html.escape(lacking)}</div>"
        said += fields.help(name, field)
        if self.helps[name].value != said:
            self.helps[name].value = said

    def typed(self) -> dict[str, Any]:
        """What the widgets say now where it is not what they began with."""
        initial = self._form.initial
        return {
            name: widget.value
            for name, widget in self.by_name.items()
            if widget.value != _shown(initial[name], widget)
        }

    def changed(self) -> None:
        """Look at the values as they are typed: mark what is wrong, take away what has no effect
        beside the others.
        """
        now = stripped({name: widget.value for name, widget in self.by_name.items()})
        for name, widget in self.by_name.items():
            widget.disabled = not meant(self._form.name, name, now)
            self.rows[name].layout.display = ticks.HIDDEN if widget.disabled else ticks.SHOWN
        wrong, said = "", ""
        try:
            self._form.check()
            valid = say("the values are valid; run the next cells to use them")
            self.said.value = f'<span role="status" style="color:var({GOOD})">✓ {valid}</span>'
        except InputError as error:
            wrong, _, said = str(error).partition(": ")
            self.said.value = _refusal(error)
        for name in self.by_name:
            self._help(name, said if name == wrong else "")
        self.planned.value = ""

    def look(self, name: str) -> None:
        """Say beside a model's field what that model is, or why it cannot be had."""
        given = str(self.by_name[name].value).strip()
        try:
            source = resolve(given)
            said = say(
                "{architecture}, {count} million weights, {size}",
                architecture=html.escape(source.architecture),
                count=f"{source.parameters / 1e6:,.0f}",
                size=tables.size(source.bytes),
            )
            style = f"line-height:1.3;color:var({GOOD})"
            self.seen[name] = f'<div role="status" style="{style}">✓ {said}</div>'
        except (AutoQuantError, OSError) as error:
            self.seen[name] = _refusal(error)
            if given in DEFAULTS and (isinstance(error, HubFailed) or offline()):
                goes_on = say(
                    "the Hub cannot be reached: the notebook goes on with the bundled demo model"
                )
                self.seen[name] = f'<div role="status" style="line-height:1.3">⚠ {goes_on}</div>'
        self._help(name)

    def look_at_models(self) -> None:
        """The same of all fields that name one."""
        for name in fields.MODELS:
            if name in self.by_name:
                self.look(name)

    def advise(self) -> None:
        """Show what of the model fits on the device, to be ticked."""
        import ipywidgets

        self.advised.children = (ipywidgets.HTML(f'<span role="status">{say("looking …")}</span>'),)
        try:
            asked = self._form.options
            said = choosing.advised(self._form.model, asked.device, asked.context)
            if self._form.name in METHODS:  # whose types alone can be ticked here
                said, verdict = choosing.own(said, self._form.name)
            else:
                unasked = say(
                    "If you tick nothing, gguf {type} is made.", type=choosing.best(said).type
                )
                verdict = f"{told(said.verdict)}. {unasked}"
            shown = ipywidgets.HTML(f"<div>{html.escape(verdict)}</div>")
            table = [ticks.table(said, self._taken, self._take)] if said.choices else []
            self.advised.children = (shown, *table)
        except (AutoQuantError, OSError) as error:
            self.advised.children = (ipywidgets.HTML(_refusal(error)),)

    def _taken(self, choice: Choice) -> bool:
        now = stripped({name: widget.value for name, widget in self.by_name.items()})
        return choice.method in self._methods() and all(
            set(_texts(value)) <= set(options.split(str(now.get(self._name(choice, name), ""))))
            for name, value in choosing.made_by(choice).items()
            if self._name(choice, name) in now and name != choosing.BETTER
        )

    def _methods(self) -> tuple[str, ...]:
        """The methods that are ticked, or the form's own."""
        ticked = self.by_name.get("methods")
        return tuple(options.split(ticked.value)) if ticked else (self._form.name,)

    def _name(self, choice: Choice, option: str) -> str:
        """What an option of a choice's method is called in this form."""
        return option if self._form.name in METHODS else f"{choice.method}_{option}"

    def _take(self, choice: Choice, ticked: bool) -> None:
        """Have a choice made, or no more."""
        methods = [*self._methods()]
        began = choice.method not in methods
        left = False
        for name, value in choosing.made_by(choice).items():
            field = self.by_name.get(self._name(choice, name))
            if field is None:
                continue
            if isinstance(value, tuple):
                before = [] if began else [*options.split(field.value)]
                kept = [one for one in before if one not in value]
                field.value = ",".join([*kept, *value] if ticked else kept or value)
                left = left or bool(kept)
            elif ticked and (name != choosing.BETTER or field.value == "none"):
                field.value = value
        if ticked and began:
            methods.append(choice.method)
        elif not ticked and not left and not began:
            methods.remove(choice.method)
        if "methods" in self.by_name:
            self.by_name["methods"].value = ",".join(methods)

    def plan(self) -> None:
        """Show what a run would make and need."""
        from autoquant import result

        self.planned.value = f'<span role="status">{say("looking at the model …")}</span>'
        try:
            plans = [
                result.plan(METHODS[method], model, out=Path.cwd() / "run", values=values)
                for method, model, values in self._form.plans()
            ]
            self.planned.value = Plans(plans)._repr_html_()
        except (AutoQuantError, OSError) as error:
            self.planned.value = _refusal(error)


def _button(description: str, icon: str, about: str) -> Any:
    import ipywidgets

    button = ipywidgets.Button(description=description, icon=icon, layout={"width": "12em"})
    tooltip(button, about)
    return button


def _methods(value: str) -> ticks.Ticks:
    """A tick box for each method."""
    offered = {name: f"take it when {method.take_when}" for name, method in METHODS.items()}
    return ticks.Ticks("methods", offered, value)


def _lacking() -> str:
    """Which methods cannot quantize on this machine, in words."""
    names = [one for one, method in METHODS.items() if "cpu" not in method.runs_on]
    if not names or nvidia_gpu():
        return ""
    return say(
        "{methods}: only with an NVIDIA GPU, which this machine lacks", methods=", ".join(names)
    )


def _texts(value: Any) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else (str(value),)


def _shown(value: Any, widget: Any) -> Any:
    """A value of the parameters cell as its widget has it."""
    return str(value) if isinstance(widget.value, str) else value


def stripped(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values without blanks around texts."""
    return {
        one: value.strip() if isinstance(value, str) else value for one, value in values.items()
    }
