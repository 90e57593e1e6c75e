"""Forms for notebooks: a method's options as widgets in Jupyter and as a ``# @param`` cell in Colab, both from the one declaration; and what else a notebook needs.

A notebook has one cell of plain assignments, which Colab draws as a form and papermill fills in. ``form("gguf", globals())`` reads them: in Jupyter it shows them as
widgets that start with those values, in Colab (whose form is the cell itself) as a summary. Widgets hold values and cells do the work: ``form.values()`` is read when a
cell runs.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import json
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator
from pydantic.fields import FieldInfo

from autoquant import options, source
from autoquant.errors import AutoQuantError, HubFailed, InputError, Stopped
from autoquant.hub.client import offline
from autoquant.llama.types import parse
from autoquant.methods import METHODS
from autoquant.options import MethodOptions, UploadOptions, option
from autoquant.progress import in_notebook

if TYPE_CHECKING:
    from autoquant.results import Result

log = logging.getLogger(__name__)
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"  # small, open (Apache-2.0), and of a size that a free machine quantizes in minutes
SMALLER, LARGER = MODEL, "HuggingFaceTB/SmolLM2-360M-Instruct"  # one family, one tokenizer: their perplexities compare
DRIVE = Path("/content/drive")
KEPT = "_autoquant_forms"  # the forms of a notebook, in its own namespace


class ModelOptions(MethodOptions):
    """What a form asks for beside a method's options."""

    model: str = option(MODEL, "a model on the Hugging Face Hub as owner/name or owner/name@revision, a folder with a checkpoint, or demo for the embedded one",
                        metavar="OWNER/NAME|FOLDER|demo")
    out: str = option("", "folder to write to; empty: named after model and method; drive: the folder AutoQuant in your Google Drive (in Colab), so that a run goes on after Colab "
                      "has disconnected", metavar="FOLDER|drive")


class CompareOptions(UploadOptions):
    """What the notebook of comparisons asks for."""

    main: ClassVar[tuple[str, ...]] = ("small", "large", "small_types", "large_types", "gptq_bits")

    small: str = option(SMALLER, "the smaller model: on the Hugging Face Hub as owner/name, or a folder", metavar="OWNER/NAME|FOLDER|demo-small")
    large: str = option(LARGER, "the larger model, of the same family", metavar="OWNER/NAME|FOLDER|demo")
    small_types: tuple[str, ...] = option(("F16", "Q8_0", "Q6_K", "Q4_K_M"), "GGUF types of the smaller model", metavar="TYPE,…", min_length=1)
    large_types: tuple[str, ...] = option(("Q3_K_M", "IQ3_XXS", "Q2_K"), "GGUF types of the larger model, to set against those of the smaller", metavar="TYPE,…", min_length=1)
    gptq_bits: tuple[str, ...] = option(("8", "4", "3"), "bit widths of the larger model by GPTQ: 2, 3, 4, 8; may be empty", metavar="BITS,…")
    calibration_samples: int = option(32, "samples that GPTQ calibrates on; more are a little better, and take longer", unit="samples", ge=1, le=100_000)
    eval_chunks: int = MethodOptions.model_fields["eval_chunks"]  # type: ignore[assignment]

    @field_validator("small_types", "large_types")
    @classmethod
    def _types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(parse(name) for name in value))

    @field_validator("gptq_bits")
    @classmethod
    def _bits(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for bits in value:
            if bits not in ("2", "3", "4", "8"):
                raise ValueError(f"{bits} is not allowed; allowed: 2, 3, 4, 8")
        return value


def _all() -> type[MethodOptions]:
    """The options of the notebook for every method: which methods, the main options of each, and those all share."""
    from pydantic import create_model

    fields: dict[str, Any] = {}
    rules = dict(MethodOptions.applies)
    for method in METHODS.values():
        for name in method.options.main:
            if name not in MethodOptions.model_fields and name != "calibration":
                fields[f"{method.name}_{name}"] = (method.options.model_fields[name].annotation, method.options.model_fields[name])
                rules[f"{method.name}_{name}"] = f"methods~{method.name}"
    names = tuple(METHODS)

    class Base(ModelOptions):
        methods: tuple[str, ...] = option(("gguf",), f"methods, one or several with commas between: {', '.join(names)}", metavar="METHOD,…", min_length=1)
        owner: str = option("", "your name on the Hub: each method's files go to OWNER/<model>-<METHOD>; empty: nothing is uploaded", metavar="OWNER")
        applies: ClassVar[Mapping[str, str]] = {**rules, "private": "owner"}
        main: ClassVar[tuple[str, ...]] = ("model", "methods", *fields, "evaluate", "owner")

    made: type[MethodOptions] = create_model("AllOptions", __base__=Base, **fields)
    return made


TITLES = {"all": "Model, methods and options", "compare": "Models to compare"}
HIDDEN = {"compare": tuple(UploadOptions.model_fields), "all": ("upload", "layout", "overwrite", "base_model", "allow_pickle")}


def declared(name: str) -> type[UploadOptions]:
    """The options of a form, with model and out: of a method, of "all", or of "compare"."""
    if name in TITLES:
        return _all() if name == "all" else CompareOptions
    if name not in METHODS:
        raise InputError(f"no form is called {name!r}; there are: {', '.join([*TITLES, *METHODS])}")
    base = METHODS[name].options

    class Declared(ModelOptions, base):  # type: ignore[valid-type, misc]
        applies: ClassVar[Mapping[str, str]] = base.applies
        main: ClassVar[tuple[str, ...]] = ("model", *base.main)

    return Declared


def entries(name: str) -> tuple[list[tuple[str, FieldInfo]], list[tuple[str, FieldInfo]]]:
    """The options of a form: those it shows at first, and those that are folded."""
    cls = declared(name)
    shown = [(one, cls.model_fields[one]) for one in cls.main]
    folded = [(one, field) for one, field in options.ordered(cls) if one not in cls.main and one not in HIDDEN.get(name, ())]
    return shown, sorted(folded, key=lambda item: item[0] != "out")


# --- the cell -----------------------------------------------------------------------------------------------------------


def about(name: str, field: FieldInfo) -> str:
    """One line of help. Notebooks upload in a cell of their own, after the checks."""
    if name == "upload":
        return "repository on the Hugging Face Hub, yourname/model: the Upload cell sends the finished files there; empty: nothing is sent"
    return str(field.description)


def plain(value: Any) -> Any:
    """A default as a literal of one line: lists are texts with commas."""
    return ",".join(value) if isinstance(value, tuple) else value


def cell(name: str, changed: Mapping[str, Any] | None = None) -> str:
    """The ``# @param`` cell of a form: plain assignments that Colab draws as a form and papermill fills in. ``changed``: other defaults of this notebook."""
    shown, folded = entries(name)
    title = TITLES.get(name) or f"Model and options of {METHODS[name].title}"
    lines = [f'# @title {title} {{ display-mode: "form" }}']
    for i, part in enumerate((shown, folded)):
        if i and part:
            lines.append("# @markdown ---\n# @markdown ### More options (the defaults are sensible)")
        for one, field in part:
            value = (changed or {}).get(one, plain(field.default))
            literal = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
            lines += [f"# @markdown **{one}**: {about(one, field)}", f"{one} = {literal}  # @param {_kind(field)}"]
    return "\n".join(lines)


def _kind(field: FieldInfo) -> str:
    """How Colab draws an option."""
    if field.annotation is bool:
        return '{type:"boolean"}'
    offered, free = options.choices(field)
    if offered and field.annotation is int and not free:
        return json.dumps(offered) + ' {type:"raw"}'
    if offered:
        return json.dumps(offered) + (' {allow-input: true}' if free else "")
    return {int: '{type:"integer"}', float: '{type:"number"}'}.get(field.annotation, '{type:"string"}')  # type: ignore[arg-type]


# --- the form -----------------------------------------------------------------------------------------------------------


def in_colab() -> bool:
    """Whether this is a notebook in Colab."""
    return "COLAB_RELEASE_TAG" in os.environ


def form(name: str, namespace: MutableMapping[str, Any]) -> Form:
    """The form of a method, or of "all" methods, that starts with the values of a notebook's parameters cell. Show it as a cell's last line.

    namespace: ``globals()`` of the notebook; the form is remembered there, so that what was typed stays when the cells above run again. A value changed in the
    parameters cell itself goes before what was typed.
    """
    values = {one: namespace[one] for one in declared(name).model_fields if one in namespace}
    kept = namespace.setdefault(KEPT, {})
    earlier: Form | None = kept.get(name)
    typed = {} if earlier is None else {one: value for one, value in earlier.typed().items() if values.get(one) == earlier.initial.get(one)}
    kept[name] = Form(name, values, typed)
    made: Form = kept[name]
    return made


class Note:
    """Some lines for the reader of a notebook; addresses in them can be clicked."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines

    def __repr__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        return "".join("<p>" + re.sub(r"(https?://[^ ]+)", r'<a href="\1">\1</a>', html.escape(line)) + "</p>" for line in self.lines)


class Form:
    """A form's values and, in Jupyter, its widgets. ``initial`` are the values of the parameters cell."""

    def __init__(self, name: str, initial: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
        self.name, self.cls = name, declared(name)
        shown, folded = entries(name)
        self.fields = dict([*shown, *folded])
        self.folded = [one for one, _ in folded]
        self.initial = {one: plain(tuple(value) if isinstance(value := initial.get(one, plain(field.default)), list) else value) for one, field in self.fields.items()}
        self._widgets: dict[str, Any] = {}
        self._box: Any = None
        self._said: Any = None
        if in_notebook() and not in_colab():
            self._draw({**self.initial, **typed})

    def typed(self) -> dict[str, Any]:
        """What the widgets say now where it is not what they began with."""
        return {one: widget.value for one, widget in self._widgets.items() if widget.value != _shown(self.initial[one], widget)}

    def _raw(self) -> dict[str, Any]:
        now = {**self.initial, **self.typed()}
        if not self._widgets:
            return now  # what has no meaning there is refused, in a line
        return {one: value if options.meant(self.cls, one, _compared(now)) else plain(self.fields[one].default) for one, value in now.items()}  # it is seen to be greyed out

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
                raise InputError(f"methods: no method is called {one!r}; there are: {', '.join(METHODS)}")
        return asked

    def values(self, method: str = "") -> dict[str, Any]:
        """The options of a method as keyword arguments for its function, checked: ``autoquant.gguf(form.model, **form.values())``.

        Only what differs from the defaults is in it, and nothing about uploading (see :meth:`upload`). Raises InputError with the same line as the function would.
        """
        chosen, cls = self._chosen(method or self.methods[0]), METHODS[method or self.methods[0]].options
        return {one: value for one, value in chosen.items() if value != cls.model_fields[one].default and (one == "base_model" or one not in UploadOptions.model_fields)}

    def _chosen(self, method: str) -> dict[str, Any]:
        """Every option of a method, checked."""
        built = self.options
        cls = METHODS[method].options
        given = {one: value for one, value in built if one in cls.model_fields and (self.name != "all" or one in MethodOptions.model_fields)}
        if self.name == "all":
            given.update({one.removeprefix(f"{method}_"): getattr(built, one) for one in self.fields if one.startswith(f"{method}_")})
        try:
            return options.build(cls, given).model_dump()  # by the rules of the method too
        except InputError as error:
            if self.name == "all" and f"{method}_{str(error).partition(':')[0]}" in self.fields:
                raise InputError(f"{method}_{error}") from None  # as it is called in this form
            raise

    def upload(self, result: Result) -> Any:
        """Upload a run if the form names a repository; otherwise say how. Returns the receipts, which show themselves; nothing is sent twice."""
        given = {one: value for one, value in self._chosen(result.method).items() if one in UploadOptions.model_fields}
        repo = given.pop("upload")
        if self.name == "all":
            owner = str(self._raw()["owner"]).strip()
            repo = f"{owner}/{result.source.name}-{result.method.upper()}" if owner else ""
        if repo and result.source.folder in source.DEMOS.values() and self.model not in source.DEMOS:
            raise InputError(f"upload: these files are of the embedded model, which stood in for {self.model}; nothing is sent under another model's name. Run the cells from "
                             "the form on again when the Hub can be reached")
        if not repo:
            name = "owner" if self.name == "all" else "upload"
            return Note(f"Nothing is uploaded. To upload, fill in {name} in the form and run this cell again. "
                        "The token is the Colab secret HF_TOKEN, the environment variable HF_TOKEN, or the login of `hf auth login`; "
                        "autoquant.forms.login() shows a field for it.")
        with stoppable():
            receipts = result.upload(repo, **given)
        return Note("Uploaded, and compared with the server file by file:", *(f"{one.url} (commit {one.commit[:10]}, {len(one.files)} files)" for one in receipts))

    def check(self) -> None:
        """Raise InputError if a value cannot be as it is."""
        if self.name == "compare":
            self.options  # noqa: B018 (looked at by being made)
            return
        for method in self.methods:
            self.values(method)

    def folder(self, model: str, method: str = "") -> Path | None:
        """Where a run on ``model`` (what :func:`reachable` gave) writes: None for the method's own default.

        Mounts Google Drive if that was asked for. On Drive, and with several methods, each run has a folder of its own, named after model and method.
        """
        out = str(self._raw()["out"]).strip()
        if out != "drive" and (self.name != "all" or not out):
            return Path(out) if out else None
        chosen = METHODS[method or self.methods[0]]
        base = _drive() / "AutoQuant" if out == "drive" else Path(out)
        found = source.resolve(model, allow_pickle=bool(self._raw().get("allow_pickle", False)))
        settled = chosen.settle(found, options.build(chosen.options, self.values(chosen.name)))
        return base / f"{found.name}-{chosen.folder_suffix(settled)}"

    # --- widgets

    def _draw(self, values: Mapping[str, Any]) -> None:
        import ipywidgets

        rows = {}
        for one, field in self.fields.items():
            widget = _widget(one, field, values[one])
            self._widgets[one] = widget
            unit = str((field.json_schema_extra or {}).get("unit", "")) if isinstance(field.json_schema_extra, dict) else ""
            note = f"{html.escape(about(one, field))}{f' ({unit})' if unit and unit not in str(field.description) else ''}"
            text = ipywidgets.HTML(f'<span style="line-height:1.3;color:var(--jp-ui-font-color2,#555);font-size:12px">{note}</span>', layout={"flex": "1 1 20em"})
            rows[one] = ipywidgets.HBox([widget, text], layout={"align_items": "center", "margin": "0 0 4px 0"})
            widget.observe(lambda _: self._changed(), "value")
        more = ipywidgets.Accordion([ipywidgets.VBox([rows[one] for one in self.folded])], selected_index=None)
        more.set_title(0, f"More options ({len(self.folded)}; the defaults are sensible)")
        self._said = ipywidgets.HTML()
        plan = ipywidgets.Button(description="Will it fit?", icon="balance-scale", layout={"width": "10em"})
        _help(plan, "show the size and the memory that this would need, for the chosen model; downloads no weights, writes nothing")
        self._planned = ipywidgets.HTML()
        plan.on_click(lambda _: self._plan())
        heading = ipywidgets.HTML(f"<b>{html.escape(TITLES.get(self.name) or METHODS[self.name].title)}</b>")
        self._box = ipywidgets.VBox([heading, *(rows[one] for one in self.fields if one not in self.folded), more, self._said, plan, self._planned],
                                    layout={"border": "1px solid var(--jp-border-color2,#ccc)", "padding": "8px 12px"})
        self._changed()

    def _changed(self) -> None:
        """Look at the values as they are typed: say what is wrong, grey out what has no meaning beside the others."""
        now = _compared({one: widget.value for one, widget in self._widgets.items()})
        for one, widget in self._widgets.items():
            widget.disabled = not options.meant(self.cls, one, now)
        try:
            self.check()
            said = '<span role="status" style="color:var(--jp-success-color1,#2e7d32)">✓ the values are valid; run the next cells to use them</span>'
        except InputError as error:
            said = f'<span role="alert" style="color:var(--jp-error-color1,#b00020)">✗ {html.escape(str(error))}</span>'
        self._said.value = said
        self._planned.value = ""

    def _plan(self) -> None:
        from autoquant import report, run

        self._planned.value = '<span role="status">looking at the model …</span>'
        try:
            wanted = ([(method, self.model, self.values(method)) for method in self.methods] if self.name != "compare" else
                      [("gguf", model, {"types": types, "imatrix": "builtin"}) for model, types in ((self.options.small, self.options.small_types),
                                                                                                   (self.options.large, self.options.large_types))])
            plans = [run.plan(METHODS[method], model, out=Path.cwd() / "run", values=values) for method, model, values in wanted]
            self._planned.value = "".join(report.plan_html(plan) for plan in plans)
        except (AutoQuantError, OSError) as error:
            self._planned.value = f'<span role="alert" style="color:var(--jp-error-color1,#b00020)">✗ {html.escape(str(error))}</span>'

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        show: Any = display
        text: Any = HTML
        if self._box is not None:
            show(self._box)
            return
        self.check()  # in Colab the parameters cell is the form: here is what it says
        different = {one: value for one, value in self._raw().items() if value != plain(self.fields[one].default) and one != "model"}
        rest = ", ".join(f"{one} = {value}" for one, value in different.items()) or "the defaults"
        what = f"{', '.join(METHODS[one].title for one in self.methods)} of {self.model}" if self.name != "compare" else f"{self.options.small} and {self.options.large}"
        show(text(f"<p><b>{html.escape(what)}</b>, options: {html.escape(rest)}."
                  f"{' Change them in the form above and run on from there.' if in_colab() else ''}</p>"))


def _shown(value: Any, widget: Any) -> Any:
    """A value of the parameters cell as its widget has it."""
    return str(value) if isinstance(widget.value, str) else value


def _compared(values: Mapping[str, Any]) -> dict[str, Any]:
    return {one: value.strip() if isinstance(value, str) else value for one, value in values.items()}


def _name(model: str) -> str:
    """A model's own name, as a Source would have it."""
    return source.DEMOS[model].name if model in source.DEMOS else Path(model.rstrip("/").partition("@")[0]).name


def _help(widget: Any, text: str) -> None:
    """A tooltip; ipywidgets 7 calls it otherwise."""
    name = next((one for one in ("tooltip", "description_tooltip") if widget.has_trait(one)), None)
    if name:
        setattr(widget, name, text)


def _widget(name: str, field: FieldInfo, value: Any) -> Any:
    import ipywidgets

    look: dict[str, Any] = {"description": name, "style": {"description_width": "11em"}, "layout": {"width": "28em", "flex": "0 0 28em"}}
    offered, free = options.choices(field)
    widget: Any
    if field.annotation in (bool, int, float) and type(value) is not field.annotation:
        widget = ipywidgets.Text(value=str(value), continuous_update=True, **look)  # it is wrong, or a text from papermill: shown as it is, and looked at by the options
    elif field.annotation is bool:
        widget = ipywidgets.Checkbox(value=value, indent=True, **look)
    elif offered and not free and value in offered:
        widget = ipywidgets.Dropdown(options=offered, value=value, **look)
    elif field.annotation is float:
        widget = ipywidgets.FloatText(value=value, continuous_update=True, step=0.01, **look)
    elif field.annotation is int:
        widget = ipywidgets.IntText(value=value, continuous_update=True, **look)
    elif offered:
        widget = ipywidgets.Combobox(value=str(value), options=[str(one) for one in offered], ensure_option=False, **look)
    else:
        widget = ipywidgets.Text(value=str(value), continuous_update=True, **look)
    _help(widget, about(name, field))
    return widget


# --- running ------------------------------------------------------------------------------------------------------------


def reachable(model: str, fallback: str = "demo") -> str:
    """The model itself, or the embedded one if it is a notebook's default and the Hub cannot be reached: so that every notebook runs without a network, and says so.

    A model that somebody chose is never replaced.
    """
    if model not in (SMALLER, LARGER):
        return model
    try:
        source.resolve(model)
    except (HubFailed, InputError) as failure:
        if isinstance(failure, InputError) and not offline():
            raise  # the Hub answered: a refused token or a model that is gone is for the user to know
        log.warning("%s cannot be had (%s). Going on with the embedded model: all that follows is about a tiny model trained on Jane Austen's novels", model, failure)
        return fallback
    return model


def _drive() -> Path:
    if not in_colab():
        raise InputError("out: drive means Google Drive as Colab mounts it, and this is not Colab; name a folder, or leave it empty")
    drive: Any = importlib.import_module("google.colab.drive")
    try:
        drive.mount(str(DRIVE))
    except Exception as error:  # noqa: BLE001 (Colab raises ValueError and kinds of its own: all mean that there is no Drive)
        raise InputError(f"out: Google Drive could not be mounted ({type(error).__name__}: {error}); allow it when Colab asks, or leave out empty") from None
    return DRIVE / "MyDrive"


def can_stop() -> bool:
    """Whether a button reaches this kernel while a cell runs: since ipykernel 7 with JupyterLab 4.4, which handle widgets beside the running cell."""
    if not in_notebook() or in_colab():
        return False
    ipykernel = importlib.import_module("ipykernel")
    return bool(ipykernel.version_info >= (7,))


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Work that may be stopped: by Jupyter's ■ and, where it can work, by a button. Finished files are kept; running the cell again continues.

    Raises Stopped (one line, no traceback) instead of KeyboardInterrupt.
    """
    button = None
    if can_stop():
        import ipywidgets
        from IPython.display import display

        show: Any = display
        button = ipywidgets.Button(description="Stop (or ■)", icon="stop", button_style="warning")
        _help(button, "stop this run; finished files are kept, and running the cell again continues")
        main = threading.get_ident()

        def stop(_: Any) -> None:
            button.description, button.disabled = "Stopping …", True
            signal.pthread_kill(main, signal.SIGINT)  # what ■ does; a flag set from another thread would not end a wait

        button.on_click(stop)
        show(button)
        # ipykernel 7.4 hears a widget in the shell that spoke last, which is about to be busy; without this note the page's own choice counts: a subshell
        vars(button.comm).pop("_reply_subshell_id", None)
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped("finished files are kept; run this cell again to go on after them") from None
    finally:
        if button is not None:
            button.close()


def login() -> Any:
    """A password field and a button that store a Hugging Face token, for notebooks where neither a secret nor a login is there.

    Returns an ipywidgets box to display. The token goes to ``huggingface_hub.login``, which asks the Hub whose it is and keeps it
    under HF_HOME; the field is emptied at once, so that it is not saved with the notebook. (``huggingface_hub.notebook_login`` starts
    a device code instead, since release 1.)
    """
    import ipywidgets
    from huggingface_hub import login as store

    from autoquant.hub.client import connect

    client = connect()
    field = ipywidgets.Password(description="HF token", placeholder="hf_…", tooltip=f"a token with write access, from {client.endpoint}/settings/tokens",
                                layout={"width": "30em"})
    button = ipywidgets.Button(description="Log in", tooltip="store the token for this machine")
    said = ipywidgets.HTML(value=f'No token yet? Make one at <a href="{client.endpoint}/settings/tokens" target="_blank">{client.endpoint}/settings/tokens</a> (write access).')

    def click(_: Any) -> None:
        token, field.value = field.value.strip(), ""
        if not token:
            said.value = "Paste a token first."
            return
        try:
            store(token=token)
        except (ValueError, OSError) as error:  # refused by the Hub; huggingface_hub's HTTP errors are OSErrors
            said.value = f"Not accepted ({type(error).__name__}). Copy the token again, or make a new one."
            return
        said.value = f"Logged in as <b>{connect().api.whoami()['name']}</b>."

    button.on_click(click)
    return ipywidgets.VBox([ipywidgets.HBox([field, button]), said])
