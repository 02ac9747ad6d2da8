"""Shapes in signatures are checked while the tests run, and only then."""

import os

from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test reaches for the network

install_import_hook(["hooked_rnn", "analyses"], "beartype.beartype")
