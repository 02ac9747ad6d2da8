"""Training in processes of its own, which the tests then kill, interrupt or starve."""

import multiprocessing
import resource
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from hooked_rnn import (
    HookedMLPConfig,
    HookedRNN,
    HookedRNNConfig,
    ModularAddition,
    TrainConfig,
    TransformerConfig,
    build_model,
    train,
)

TASK = ModularAddition(11)
WITH_EQUALS = ModularAddition(11, equals_token=True)
KINDS: dict[str, Callable[..., Any]] = {
    "rnn": partial(HookedRNNConfig, d_hidden=24),
    "transformer": partial(TransformerConfig, n_heads=2, d_mlp=24),
    "mlp": partial(HookedMLPConfig, d_mlp=24, n_ctx=3),
}
FIELDS = {"steps": 60, "orthogonal_steps": 30, "eval_every": 4, "checkpoint_every": 5, "train_fraction": 0.5}

FORK_SERVER = multiprocessing.get_context("forkserver")  # imports once, then starts a process in milliseconds
FORK_SERVER.set_forkserver_preload(
    ["hooked_rnn", "hooked_rnn.baselines.transformer", "torch._dynamo"]
)  # which AdamW imports when it is made


def model_of(task: ModularAddition = TASK) -> HookedRNN:
    return HookedRNN(HookedRNNConfig(d_vocab=task.d_vocab, d_vocab_out=task.p, d_model=16, d_hidden=24))


def config_of_kind(kind: str, **fields: Any) -> Any:
    """A small model of a kind that fits :data:`WITH_EQUALS`."""
    return KINDS[kind](**{"d_vocab": 12, "d_vocab_out": 11, "d_model": 16, **fields})


def start(
    out: Path,
    before: Callable[..., None] | None = None,
    arguments: tuple = (),
    kind: str | None = None,
    **fields: Any,
) -> "Training":
    """A process that trains, or goes on with, the run in a directory; ``before`` is called in it first.

    Of :func:`model_of` on :data:`TASK`, or of a model of a kind on :data:`WITH_EQUALS`.
    """
    receiver, sender = FORK_SERVER.Pipe(duplex=False)
    process = FORK_SERVER.Process(target=_train, args=(sender, out, before, arguments, kind, fields))
    process.start()
    assert receiver.recv() == "ready"
    return Training(process, receiver)


class Training:
    def __init__(self, process: BaseProcess, receiver: Connection) -> None:
        self.process = process
        self.receiver = receiver

    def outcome(self) -> str:
        """What became of it: "finished", an error's name and text, or "killed"."""
        try:
            return self.receiver.recv()
        except EOFError:
            return "killed"
        finally:
            self.process.join()


def _train(
    sender: Connection,
    out: Path,
    before: Callable[..., None] | None,
    arguments: tuple,
    kind: str | None,
    fields: dict,
) -> None:
    torch.set_num_threads(1)
    model, task = (model_of(), TASK) if kind is None else (build_model(config_of_kind(kind)), WITH_EQUALS)
    config = TrainConfig.recipe("fast", **{**FIELDS, **fields})
    sender.send("ready")
    try:
        if before is not None:
            before(*arguments)
        train(model, task, config, out, progress=False, resume=True)
        sender.send("finished")
    except BaseException as error:
        sender.send(f"{type(error).__name__}: {error}")


def die_at_file_operation(number: int, directory: str) -> None:
    """Kill this process right before it opens, moves, makes or removes something in the directory for the n-th time."""
    import os
    import signal

    seen = 0

    def count(event: str, details: tuple) -> None:
        nonlocal seen
        if event in ("open", "os.rename", "os.mkdir", "os.remove") and str(details[0]).startswith(directory):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def write_no_file_above(size: int) -> None:
    """Let this process write no file larger than this: to a program, a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
