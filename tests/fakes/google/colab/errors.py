"""The base of Colab's errors, which huggingface_hub imports."""


class Error(Exception):
    """An error of Colab's own."""
