"""Shapes in signatures are checked while the tests run, and only then."""

import os

import torch
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test reaches for the network

install_import_hook(["hooked_rnn", "analyses"], "beartype.beartype")

torch.set_num_threads(1)  # the tests are many small sums, and two threads would mostly wait for each other
