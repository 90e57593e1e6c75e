"""The Hugging Face Hub: the client and its token, fetching models, uploading results."""
