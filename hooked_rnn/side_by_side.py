"""Threads that share a computation, each of them with one torch thread.

Torch's own threads split one operation at a time and wait for each other after each, and many operations
they do not split at all. Here every thread computes a share from beginning to end. Torch releases Python's
lock while it computes. The number of torch threads is each thread's own (of the calling one, nothing
changes), and what a share adds up is its own too, so that the order of sums is always the same.
"""

import os
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


def lead(size: int, function: Callable[[], T]) -> T:
    """Call a function, without autograd, in a thread that can :func:`share` work with ``size - 1`` others.

    With a size of 1 the function is called as it is, where it is. What it raises is raised here. An
    interrupt of the calling thread, such as Ctrl-C, is raised when the function has come to its end.
    """
    return function() if size == 1 else _leader(size, os.getpid()).begin(function).outcome()


def team_size() -> int:
    """How many threads work together where this is asked: 1, unless in a function given to :func:`lead`."""
    return 1 + len(_team.helpers)


def share(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """What each of these returns: the threads of :func:`lead` take one each, and others call them in turn.

    All have come to an end when this returns or raises.

    Raises:
        ValueError: there are more than :func:`team_size`, and it is not 1.
    """
    helpers = _team.helpers
    if not helpers:
        return [task() for task in tasks]
    if len(tasks) > team_size():
        raise ValueError(f"{len(tasks)} tasks: expected at most {team_size()}, the threads there are")
    begun = [helper.begin(task) for helper, task in zip(helpers, tasks[1:], strict=False)]
    try:
        return [tasks[0](), *(task.outcome() for task in begun)]
    finally:
        for task in begun:
            task.wait()


class _Team(threading.local):
    """Whom the thread leads."""

    helpers: Sequence["_Worker"] = ()


_team = _Team()


class _Task(Generic[T]):
    """A function to call in another thread, and what came of it."""

    def __init__(self, function: Callable[[], T]) -> None:
        self.function = function
        self.ended = threading.Lock()
        self.ended.acquire()

    def run(self) -> None:
        try:
            self.value = self.function()
        except BaseException as error:
            self.error: BaseException = error
        self.ended.release()

    def wait(self) -> None:
        with self.ended:
            pass

    def outcome(self) -> T:
        try:
            self.wait()
        except BaseException:  # an interrupt: nothing computes on behind the back of who caught it
            self.wait()
            raise
        if hasattr(self, "error"):
            raise self.error
        return self.value


class _Worker:
    """A thread that runs what it is given, one after another, as long as the process lives."""

    def __init__(self, helpers: Sequence["_Worker"] = ()) -> None:
        self.tasks: SimpleQueue[_Task[Any]] = SimpleQueue()
        threading.Thread(target=self._work, name="hooked-rnn", daemon=True).start()
        self.begin(partial(_settle, helpers)).outcome()

    def begin(self, function: Callable[[], T]) -> _Task[T]:
        task = _Task(function)
        self.tasks.put(task)
        return task

    def _work(self) -> None:
        while True:
            self.tasks.get().run()


def _settle(helpers: Sequence[_Worker]) -> None:
    """In a new thread."""
    _team.helpers = helpers
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread's first question takes over the number that was set last, by whatever thread


@lru_cache
def _leader(size: int, process: int) -> _Worker:
    """A worker with its helpers; a forked process, which has no thread of its parent's but one, gets its own."""
    threads = torch.get_num_threads()
    try:
        return _Worker([_Worker() for _ in range(size - 1)])
    finally:
        torch.set_num_threads(threads)  # or later threads of anybody's would begin with 1
