"""Forms for notebooks: a method's options as widgets in Jupyter and as a ``# @param`` cell in
Colab, both from the one declaration.

A notebook has one cell of plain assignments, which Colab draws as a form and papermill fills in.
``form("gguf", globals())`` reads them: in Jupyter it shows them as widgets that start with those
values, in Colab (whose form is the cell itself) as a summary. Widgets hold values and cells do the
work: ``form.values()`` is read when a cell runs.
"""

from __future__ import annotations

import functools
import html
import json
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic.fields import FieldInfo

from autoquant import source
from autoquant.core import bundled, files, options
from autoquant.core.errors import AutoQuantError, InputError
from autoquant.core.options import MethodOptions, UploadOptions
from autoquant.core.progress import in_notebook
from autoquant.methods import METHODS
from autoquant.notebook.form_options import (
    HIDDEN,
    TITLES,
    calibrates,
    declared,
    entries,
    existing,
    meant,
)
from autoquant.notebook.page import (
    LARGER,
    MODEL,
    SMALLER,
    Note,
    can_stop,
    drive,
    in_colab,
    login,
    reachable,
    reachable_pair,
    stoppable,
    tooltip,
)

if TYPE_CHECKING:
    from autoquant.result import Result

# what notebooks use: what they need of autoquant.notebook.page is here too, so that one import is
# enough
__all__ = [
    "KEPT",
    "LARGER",
    "MODEL",
    "SMALLER",
    "Form",
    "Note",
    "about",
    "can_stop",
    "cell",
    "declared",
    "entries",
    "form",
    "in_colab",
    "login",
    "plain",
    "reachable",
    "reachable_pair",
    "stoppable",
]
NOTE = "line-height:1.3;color:var(--jp-ui-font-color2,#555);font-size:12px"
KEPT = "_autoquant_forms"  # the forms of a notebook, in its own namespace
# bytes of a text that is read while somebody types; a larger one is looked at when the run begins
LARGEST = 8 << 20


# --- the cell -------------------------------------------------------------------------------------


def about(name: str, field: FieldInfo) -> str:
    """One line of help. Notebooks upload in a cell of their own, after the checks."""
    if name == "upload":
        return (
            "repository on the Hugging Face Hub, yourname/model: the Upload cell sends the finished"
            " files there; empty: nothing is sent"
        )
    return str(field.description)


def plain(value: Any) -> Any:
    """A default as a literal of one line: lists are texts with commas."""
    return ",".join(value) if isinstance(value, tuple) else value


def cell(name: str, changed: Mapping[str, Any] | None = None) -> str:
    """The ``# @param`` cell of a form: plain assignments that Colab draws as a form and papermill
    fills in. ``changed``: other defaults of this notebook.
    """
    shown, folded = entries(name)
    title = TITLES.get(name) or f"Model and options of {METHODS[name].title}"
    lines = [f'# @title {title} {{ display-mode: "form" }}']
    for i, part in enumerate((shown, folded)):
        if i and part:
            lines.append(
                "# @markdown ---\n# @markdown ### More options (the defaults are sensible)"
            )
        for one, field in part:
            value = (changed or {}).get(one, plain(field.default))
            literal = (
                json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
            )
            lines += [
                f"# @markdown **{one}**: {about(one, field)}",
                f"{one} = {literal}  # @param {_kind(field)}",
            ]
    return "\n".join(lines)


def _kind(field: FieldInfo) -> str:
    """How Colab draws an option."""
    if field.annotation is bool:
        return '{type:"boolean"}'
    offered, free = options.choices(field)
    if offered and field.annotation is int and not free:
        return json.dumps(offered) + ' {type:"raw"}'
    if offered:
        return json.dumps(offered) + (" {allow-input: true}" if free else "")
    kinds: dict[Any, str] = {int: "integer", float: "number"}
    return f'{{type:"{kinds.get(field.annotation, "string")}"}}'


# --- the form -------------------------------------------------------------------------------------


def form(name: str, namespace: MutableMapping[str, Any]) -> Form:
    """The form of a method, or of "all" methods, that starts with the values of a notebook's
    parameters cell. Show it as a cell's last line.

    namespace: ``globals()`` of the notebook; the form is remembered there, so that what was typed
    stays when the cells above run again. A value changed in the parameters cell itself goes before
    what was typed.
    """
    values = {one: namespace[one] for one in declared(name).model_fields if one in namespace}
    kept = namespace.setdefault(KEPT, {})
    earlier: Form | None = kept.get(name)
    typed = (
        {}
        if earlier is None
        else {
            one: value
            for one, value in earlier.typed().items()
            if values.get(one) == earlier.initial.get(one)
        }
    )
    kept[name] = Form(name, values, typed)
    made: Form = kept[name]
    return made


class Form:
    """A form's values and, in Jupyter, its widgets. ``initial`` are the values of the parameters
    cell.
    """

    def __init__(self, name: str, initial: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
        self.name, self.cls = name, declared(name)
        shown, folded = entries(name)
        self.fields = dict([*shown, *folded])
        self.folded = [one for one, _ in folded]
        self.initial = {
            one: plain(
                tuple(value)
                if isinstance(value := initial.get(one, plain(field.default)), list)
                else value
            )
            for one, field in self.fields.items()
        }
        self._widgets: dict[str, Any] = {}
        self._box: Any = None
        self._said: Any = None
        if in_notebook() and not in_colab():
            self._draw({**self.initial, **typed})

    def typed(self) -> dict[str, Any]:
        """What the widgets say now where it is not what they began with."""
        return {
            one: widget.value
            for one, widget in self._widgets.items()
            if widget.value != _shown(self.initial[one], widget)
        }

    def _raw(self) -> dict[str, Any]:
        now = {**self.initial, **self.typed()}
        own: Mapping[str, Any] = {}
        if self.name in METHODS:
            own = METHODS[self.name].notebook_defaults
        beside = _compared(now)
        # what has no meaning counts as not given, where widgets show it greyed out; in a plain cell
        # it is refused, unless it is the notebook's own default
        for one, value in now.items():
            if (self._widgets or (one in own and value == own[one])) and not meant(
                self.name, one, beside
            ):
                now[one] = plain(self.fields[one].default)
        return now

    @property
    def options(self) -> Any:
        """All values, checked: ``form.options.bits``. Raises InputError for one that cannot be."""
        return options.build(self.cls, self._raw())

    @property
    def model(self) -> str:
        """The model that is asked for."""
        return str(self._raw()["model"]).strip()

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are asked for, checked. Raises InputError for one that there is not."""
        if self.name != "all":
            return (self.name,)
        asked: tuple[str, ...] = tuple(dict.fromkeys(self.options.methods))
        for one in asked:
            if one not in METHODS:
                raise InputError(
                    f"methods: no method is called {one!r}; there are: {', '.join(METHODS)}"
                )
        return asked

    def values(self, method: str = "") -> dict[str, Any]:
        """The options of a method as keyword arguments for its function, checked:
        ``autoquant.gguf(form.model, **form.values())``.

        Only what differs from the defaults is in it, and nothing about uploading (see
        :meth:`upload`). Raises InputError with the same line as the function would.
        """
        chosen, cls = (
            self._chosen(method or self.methods[0]),
            METHODS[method or self.methods[0]].Options,
        )
        return {
            one: value
            for one, value in chosen.items()
            if value != cls.model_fields[one].default
            and (one == "base_model" or one not in UploadOptions.model_fields)
        }

    def _chosen(self, method: str) -> dict[str, Any]:
        """Every option of a method, checked."""
        built = self.options
        cls = METHODS[method].Options
        # what is hidden is as the method has it
        own = [
            one
            for one in cls.model_fields
            if self.name != "all"
            or (one in MethodOptions.model_fields and one not in HIDDEN["all"])
        ]
        given = {one: value for one, value in built if one in own}
        if self.name == "all":
            given.update(
                {
                    one.removeprefix(f"{method}_"): getattr(built, one)
                    for one in self.fields
                    if one.startswith(f"{method}_")
                }
            )
            # builtin leaves each method its own default text: EXL2 has another
            if built.calibration != "builtin" and calibrates(method, self._raw()):
                given["calibration"] = built.calibration
        try:
            built_by_method: dict[str, Any] = options.build(cls, given).model_dump()
            return built_by_method
        except InputError as error:
            raise self._renamed(method, error) from None

    def _renamed(self, method: str, error: InputError) -> InputError:
        """A method's error, with its option as it is called in this form."""
        return (
            InputError(f"{method}_{error}")
            if self.name == "all" and f"{method}_{str(error).partition(':')[0]}" in self.fields
            else error
        )

    def upload(self, result: Result) -> Any:
        """Upload a run if the form names a repository; otherwise say how. Returns the receipts,
        which show themselves; nothing is sent twice.
        """
        given = {
            one: value
            for one, value in self._chosen(result.method).items()
            if one in UploadOptions.model_fields
        }
        repo = given.pop("upload")
        if self.name == "all":
            owner = self.options.owner
            repo = f"{owner}/{result.source.name}-{result.method.upper()}" if owner else ""
        if (
            repo
            and result.source.folder in bundled.MODELS.values()
            and self.model not in bundled.MODELS
        ):
            raise InputError(
                f"upload: these files are of the embedded model, which stood in for {self.model};"
                " nothing is sent under another model's name. Run the cells from the form on again"
                " when the Hub can be reached"
            )
        if not repo:
            name = "owner" if self.name == "all" else "upload"
            return Note(
                f"Nothing is uploaded. To upload, fill in {name} in the form and run this cell"
                " again. The token is the Colab secret HF_TOKEN, the environment variable"
                " HF_TOKEN, or the login of `hf auth login`; forms.login() shows a field for it."
            )
        with stoppable():
            receipts = result.upload(repo, **given)
        return Note(
            "Uploaded, and compared with the server file by file:",
            *(f"{one.url} (commit {one.commit[:10]}, {len(one.files)} files)" for one in receipts),
        )

    def check(self) -> None:
        """Raise InputError if a value cannot be as it is, by all that a run looks at beside the
        model: options that exclude each other, texts that are not there.
        """
        if self.name == "compare":
            self.options  # noqa: B018 (looked at by being made)
            return
        for method in self.methods:
            refused = _refused(method, options.build(METHODS[method].Options, self._chosen(method)))
            if refused:
                raise self._renamed(method, InputError(refused))

    def folder(self, model: str, method: str = "", **values: Any) -> Path | None:
        """Where a run on ``model`` (what :func:`reachable` gave) writes: None for the method's own
        default. ``values``: options that the form of comparisons does not know.

        Mounts Google Drive if that was asked for. On Drive, and with several methods, each run has
        a folder of its own, named after model and method.
        """
        out = str(self._raw()["out"]).strip()
        if out != "drive" and (self.name in METHODS or not out):
            return Path(out) if out else None
        chosen = METHODS[method or self.methods[0]]
        base = drive() / "AutoQuant" if out == "drive" else Path(out)
        found = source.resolve(model, allow_pickle=bool(self._raw().get("allow_pickle", False)))
        settled = chosen.resolve_defaults(
            found,
            options.build(
                chosen.Options, values if self.name == "compare" else self.values(chosen.name)
            ),
        )
        return base / f"{found.name}-{chosen.folder_suffix(settled)}"

    # --- widgets

    def _draw(self, values: Mapping[str, Any]) -> None:
        import ipywidgets

        rows = {}
        for one, field in self.fields.items():
            widget = _widget(one, field, values[one])
            self._widgets[one] = widget
            unit = (
                str((field.json_schema_extra or {}).get("unit", ""))
                if isinstance(field.json_schema_extra, dict)
                else ""
            )
            unit = f" ({unit})" if unit and unit not in str(field.description) else ""
            text = ipywidgets.HTML(
                f'<div style="{NOTE}">{html.escape(about(one, field))}{unit}</div>',
                layout={"flex": "1 1 20em"},
            )
            rows[one] = ipywidgets.HBox(
                [widget, text], layout={"align_items": "center", "margin": "0 0 4px 0"}
            )
            widget.observe(lambda _: self._changed(), "value")
        more = ipywidgets.Accordion(
            [ipywidgets.VBox([rows[one] for one in self.folded])], selected_index=None
        )
        more.set_title(0, f"More options ({len(self.folded)}; the defaults are sensible)")
        self._said = ipywidgets.HTML()
        plan = ipywidgets.Button(
            description="Will it fit?", icon="balance-scale", layout={"width": "10em"}
        )
        tooltip(
            plan,
            "show the size and the memory that this would need, for the chosen model; downloads no"
            " weights, writes nothing",
        )
        self._planned = ipywidgets.HTML()
        plan.on_click(lambda _: self._plan())
        heading = ipywidgets.HTML(
            f"<b>{html.escape(TITLES.get(self.name) or METHODS[self.name].title)}</b>"
        )
        self._box = ipywidgets.VBox(
            [
                heading,
                *(rows[one] for one in self.fields if one not in self.folded),
                more,
                self._said,
                plan,
                self._planned,
            ],
            layout={"border": "1px solid var(--jp-border-color2,#ccc)", "padding": "8px 12px"},
        )
        self._changed()

    def _changed(self) -> None:
        """Look at the values as they are typed: say what is wrong, grey out what has no meaning
        beside the others.
        """
        now = _compared({one: widget.value for one, widget in self._widgets.items()})
        for one, widget in self._widgets.items():
            widget.disabled = not meant(self.name, one, now)
        try:
            self.check()
            said = (
                '<span role="status" style="color:var(--jp-success-color1,#2e7d32)">✓ the values'
                " are valid; run the next cells to use them</span>"
            )
        except InputError as error:
            said = (
                '<span role="alert" style="color:var(--jp-error-color1,#b00020)">✗'
                f" {html.escape(str(error))}</span>"
            )
        self._said.value = said
        self._planned.value = ""

    def _plan(self) -> None:
        from autoquant import result
        from autoquant.display import html as shown

        self._planned.value = '<span role="status">looking at the model …</span>'
        try:
            wanted = (
                self._compared_plans()
                if self.name == "compare"
                else [(method, self.model, self.values(method)) for method in self.methods]
            )
            plans = [
                result.plan(METHODS[method], model, out=Path.cwd() / "run", values=values)
                for method, model, values in wanted
            ]
            self._planned.value = "".join(
                shown.plan(plan, METHODS[plan.method].title) for plan in plans
            )
        except (AutoQuantError, OSError) as error:
            self._planned.value = (
                '<span role="alert" style="color:var(--jp-error-color1,#b00020)">✗'
                f" {html.escape(str(error))}</span>"
            )

    def _compared_plans(self) -> list[tuple[str, str, dict[str, Any]]]:
        """What the notebook of comparisons makes: of the larger model the smaller one's types too,
        and GPTQ.
        """
        asked = self.options
        return [
            ("gguf", asked.small, {"types": asked.small_types, "imatrix": "builtin"}),
            (
                "gguf",
                asked.large,
                {
                    "types": tuple(sorted({*asked.small_types, *asked.large_types})),
                    "imatrix": "builtin",
                },
            ),
            *(
                (
                    "gptq",
                    asked.large,
                    {"bits": int(width), "calibration_samples": asked.calibration_samples},
                )
                for width in asked.gptq_bits
            ),
        ]

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        show: Any = display
        text: Any = HTML
        if self._box is not None:
            show(self._box)
            return
        self.check()  # in Colab the parameters cell is the form: here is what it says
        different = {
            one: value
            for one, value in self._raw().items()
            if value != plain(self.fields[one].default) and one != "model"
        }
        rest = ", ".join(f"{one} = {value}" for one, value in different.items()) or "the defaults"
        what = (
            f"{', '.join(METHODS[one].title for one in self.methods)} of {self.model}"
            if self.name != "compare"
            else f"{self.options.small} and {self.options.large}"
        )
        hint = " Change them in the form above and run on from there." if in_colab() else ""
        show(text(f"<p><b>{html.escape(what)}</b>, options: {html.escape(rest)}.{hint}</p>"))


def _refused(method: str, chosen: MethodOptions) -> str:
    """Why a run would refuse these options on any model; empty if it would not. Where they are sent
    does not matter here, and texts that are too large to be read at each key are left to the run.
    """
    sent = {one: field.default for one, field in UploadOptions.model_fields.items()}
    stamps, skipped = [], {}
    for one in ("calibration", "imatrix", "eval_text"):
        path = existing(str(getattr(chosen, one, "")))
        if path:
            seen = path.stat()
            stamps.append((one, seen.st_mtime_ns, seen.st_size))
            if seen.st_size > LARGEST:
                skipped[one] = "builtin"
    return _refusal(method, chosen.model_copy(update={**sent, **skipped}), tuple(stamps))


@functools.lru_cache(maxsize=256)
def _refusal(method: str, chosen: MethodOptions, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """The method's own check, on the embedded model, whose widths every group size and bit width
    fits: so what it refuses, it refuses of any model. ``stamps``: of the files that are read, so
    that a changed one is read again.
    """
    own = METHODS[method]
    if getattr(chosen, "backend", "") == "auto-gptq" and getattr(chosen, "algorithm", "") == "gptq":
        # it would look for CUDA in a process of its own, which takes seconds
        chosen = chosen.model_copy(update={"backend": "gptqmodel"})
    if getattr(chosen, "measurement", ""):
        # it is another model's, and may lie on the Hub
        chosen = chosen.model_copy(update={"measurement": ""})
    try:
        found = source.resolve("demo")
        own.check(found, own.resolve_defaults(found, chosen))
        if chosen.evaluate != "off":
            files.read_text(chosen.eval_text, "eval_text", bundled.EVALUATION_TEXT)
    except InputError as error:
        return str(error)
    except (OSError, RuntimeError, ValueError) as error:
        # a name that is no file's: too long, or of an unknown user's home
        return f"a file cannot be looked for ({error})"
    return ""


def _shown(value: Any, widget: Any) -> Any:
    """A value of the parameters cell as its widget has it."""
    return str(value) if isinstance(widget.value, str) else value


def _compared(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        one: value.strip() if isinstance(value, str) else value for one, value in values.items()
    }


def _widget(name: str, field: FieldInfo, value: Any) -> Any:
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
