"""Widgets for notebooks."""

from __future__ import annotations

from typing import Any


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
