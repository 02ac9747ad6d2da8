"""Threads that share a step: what they compute comes back, and nothing of the user's changes."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator

import pytest
import torch

from hooked_rnn import HookedRNN, HookedRNNConfig, ModularAddition, Run, TrainConfig, train
from hooked_rnn.errors import TrainingDivergedError
from hooked_rnn.side_by_side import lead, share, team_size

TASK = ModularAddition(31)


@pytest.fixture(params=[2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Torch's number of threads, while the test runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def in_a_new_thread() -> int:
    """Torch's number of threads there."""
    numbers: list[int] = []
    thread = threading.Thread(target=lambda: numbers.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return numbers[0]


def where() -> tuple[int, int, bool]:
    time.sleep(0.01)
    return threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()


def test_every_share_has_a_thread_with_one_torch_thread_and_the_users_number_stays(threads: int) -> None:
    at = lead(threads, lambda: share([where] * team_size()))
    identities = {identity for identity, _, _ in at}
    assert len(at) == len(identities) == threads
    assert threading.get_ident() not in identities
    assert all(number == 1 and not grad for _, number, grad in at)
    assert torch.get_num_threads() == in_a_new_thread() == threads
    assert torch.is_grad_enabled()


def test_results_come_in_the_order_of_the_tasks(threads: int) -> None:
    def late(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    tasks = [lambda s=s: late(s) for s in (0.03, 0.02, 0.01)[:threads]]
    assert lead(threads, lambda: share(tasks)) == [task() for task in tasks]


def test_without_a_team_tasks_are_called_in_turn_where_they_are() -> None:
    assert team_size() == 1
    assert lead(1, threading.get_ident) == threading.get_ident()
    assert [identity for identity, _, _ in share([where] * 3)] == [threading.get_ident()] * 3


def test_more_tasks_than_threads_are_refused_rather_than_left_out() -> None:
    with pytest.raises(ValueError, match="4 tasks: expected at most 2"):
        lead(2, lambda: share([where] * 4))


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_is_raised_when_every_share_has_come_to_its_end(threads: int, failing: int) -> None:
    ended = []

    def task(i: int) -> None:
        if i == failing:
            raise ZeroDivisionError(f"in share {i}")
        time.sleep(0.05)
        ended.append(i)

    with pytest.raises(ZeroDivisionError, match=f"in share {failing}"):
        lead(threads, lambda: share([lambda i=i: task(i) for i in range(threads)]))
    assert sorted(ended) == [i for i in range(threads) if i != failing]
    assert torch.get_num_threads() == in_a_new_thread() == threads
    assert lead(threads, team_size) == threads  # the team goes on


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own answer to SIGINT, which a process that was started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_is_raised_when_the_function_has_come_to_its_end(threads: int) -> None:
    ended = []

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        lead(threads, interrupted)
    assert ended == [True]
    assert torch.get_num_threads() == in_a_new_thread() == threads
    assert lead(threads, team_size) == threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX system")
def test_a_forked_process_has_threads_of_its_own() -> None:
    assert lead(2, team_size) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, of forks where there are threads
        child = os.fork()
    if child == 0:
        os._exit(0 if lead(2, lambda: share([team_size] * 2)) == [2, 1] else 1)
    for _ in range(200):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child waits for a thread that it does not have")
    assert os.waitstatus_to_exitcode(status) == 0


def trained(**fields: object) -> Run:
    model = HookedRNN(HookedRNNConfig(d_vocab=31, d_vocab_out=31, d_model=16, d_hidden=24))
    fields = {"steps": 8, "orthogonal_steps": 4, "eval_every": 8, "train_fraction": 0.9, **fields}
    return train(model, TASK, TrainConfig.recipe("fast", **fields), progress=False)


def test_training_gives_the_same_bits_on_as_many_threads_and_the_same_numbers_on_others(threads: int) -> None:
    first, second = trained(), trained()
    torch.set_num_threads(1)
    alone, alone_again = trained(), trained()
    for a, b, c, d in zip(*(run.model.parameters() for run in (first, second, alone, alone_again)), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(c, d)
        torch.testing.assert_close(a, c, rtol=1e-3, atol=1e-4)  # eight steps of AdamW amplify rounding


def test_a_step_is_taken_by_the_team_and_not_by_the_caller(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(
        "hooked_rnn.training.loop.orthogonalize_gradients", lambda parameters: sizes.append(team_size())
    )
    trained()
    assert sizes == [threads] * 4
    sizes.clear()
    trained(batch_size=100)  # too few for two
    assert sizes == [1] * 4


def test_a_run_that_diverges_leaves_the_number_of_threads_alone(threads: int) -> None:
    with pytest.raises(TrainingDivergedError, match="the loss became nan"):
        trained(orthogonal_lr=1e30)
    assert torch.get_num_threads() == in_a_new_thread() == threads
