"""Engines: the same results in this process, in a pool of processes, and on a Ray cluster that loses a node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sharded_eden.errors import EdenError, InputError, MissingExtra, UsageError
from sharded_eden.jobs import Engine, _Worker, run_tasks


def work(task: int, say) -> int:
    say(("at", task))
    if task == 3:
        raise InputError("three is refused")
    if task == 7:
        raise MissingExtra("seven", "numbers")
    if task == 100:
        os.kill(os.getpid(), signal.SIGKILL)
    return task * task


def outcomes(engine: Engine) -> tuple[dict[int, object], list[object]]:
    heard: list[object] = []
    ended = {
        each.task: each.result if each.error is None else each.error
        for each in run_tasks(work, iter(range(9)), engine, heard=heard.append)
    }
    return ended, heard


INTERRUPTED_IN_POLARS = """
import builtins, signal
import numpy, polars
from sharded_eden.jobs import connect_polars_to_numpy

def load(name, *arguments, **options):
    if "multiarray" in name and not seen:
        seen.append(name)
        signal.raise_signal(signal.SIGINT)
    return real(name, *arguments, **options)

seen, real, builtins.__import__ = [], builtins.__import__, load
try:
    {first_use}
except BaseException as error:
    print(type(error).__name__)
print(seen, polars.Series(numpy.arange(3)).to_list())
"""


@pytest.mark.parametrize(
    ("first_use", "ends"),
    [("connect_polars_to_numpy()", "KeyboardInterrupt"), ("polars.Series(numpy.zeros(1))", "PanicException")],
)
def test_ctrl_c_while_polars_loads_numpy(first_use: str, ends: str) -> None:
    """The second case is what Polars does without our function; where it no longer panics, the function may go."""
    program = INTERRUPTED_IN_POLARS.format(first_use=first_use)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.stdout == f"{ends}\n['numpy._core.multiarray'] [0, 1, 2]\n"
    assert ("panicked" in run.stderr) == (ends == "PanicException")


HANDLED = """
import signal
from sharded_eden.jobs import connect_polars_to_numpy
import polars
real = polars.Series

def interrupted(*arguments):
    signal.raise_signal(signal.SIGINT)
    return real(*arguments)

polars.Series = interrupted
signal.signal(signal.SIGINT, {handler})
connect_polars_to_numpy()
print("goes on")
"""


@pytest.mark.parametrize(
    ("handler", "status", "printed"),
    [
        ("lambda number, frame: print(number, frame.f_lineno > 0)", 0, "2 True\ngoes on\n"),
        ("signal.SIG_IGN", 0, "goes on\n"),
        ("signal.SIG_DFL", -signal.SIGINT, ""),
    ],
)
def test_ctrl_c_reaches_the_handler_that_was_set(handler: str, status: int, printed: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", HANDLED.format(handler=handler)], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (status, printed, "")


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_results_errors_and_messages(jobs: int) -> None:
    ended, heard = outcomes(Engine("local", jobs))
    assert {task: result for task, result in ended.items() if task not in {3, 7}} == {
        task: task * task for task in range(9) if task not in {3, 7}
    }
    assert isinstance(ended[3], InputError)
    assert str(ended[3]) == "three is refused"
    assert isinstance(ended[7], MissingExtra)
    assert "pip install '.[numbers]'" in str(ended[7])
    assert sorted(heard) == [("at", task) for task in range(9)]


def die_in_a_message(task: tuple[str, int], say) -> int:
    how, number = task
    if number == 0:
        _Worker.one_at_a_time.acquire()
        if how == "half of it is sent":
            os.write(_Worker.messages.fileno(), b"\0\0\x10\0abc")  # 4096 bytes are announced
        os.kill(os.getpid(), signal.SIGKILL)
    say(number)
    return number


@pytest.mark.parametrize("how", ["it is not begun", "half of it is sent"])
def test_a_worker_that_dies_while_it_sends_a_message_is_an_error(how: str) -> None:
    with pytest.raises(EdenError, match="a worker process died"):
        list(run_tasks(die_in_a_message, [(how, number) for number in range(6)], Engine(jobs=2)))


def test_tasks_are_read_as_they_are_needed() -> None:
    taken: list[int] = []

    def tasks():
        for task in range(100, 200):
            taken.append(task)
            yield task - 100

    for _ in run_tasks(work, tasks(), Engine()):
        if len(taken) == 3:
            break
    assert len(taken) == 3


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error() -> None:
    with pytest.raises(EdenError, match=r"a worker process died.*fewer --jobs than 2"):
        list(run_tasks(work, [1, 100, 2], Engine("local", 2)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dask",), "--engine must be 'local' or 'ray'"),
        (("local", 0), "--jobs must be at least 1"),
        (("local", 1, "auto"), "--address auto needs --engine ray"),
    ],
)
def test_invalid_engine_options(arguments: tuple, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Engine(*arguments)


def test_ray_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"ray is not installed.*pip install '\.\[ray\]'"):
        list(run_tasks(work, [1], Engine("ray")))


ON_A_CLUSTER = """
    import random, sys, threading, time
    from pathlib import Path
    import ray
    from ray.cluster_utils import Cluster
    sys.path.insert(0, sys.argv[2])
    from test_build_again import rows, state, world
    from sharded_eden import build_sequence_dbs, verify

    here = Path(sys.argv[1])
    inputs = world(here / "in", samples=40)
    build_sequence_dbs([inputs], here / "local")

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")

    def kill_halfway():
        while len(list((here / "db").glob("*/*.sqlite"))) < 15:
            time.sleep(0.01)
        nodes.append(len(ray.nodes()))
        cluster.remove_node(second, allow_graceful=False)

    nodes = []
    killer = threading.Thread(target=kill_halfway)
    killer.start()
    result = build_sequence_dbs([inputs], here / "db", engine="ray", jobs=4, address=cluster.address)
    killer.join()
    assert nodes == [2]
    assert result.samples == len(rows(here / "local")), result
    assert state(here / "db") == state(here / "local")
    assert build_sequence_dbs([inputs], here / "db", engine="ray").samples == 0
    alone = verify(here / "db", full=True)
    assert verify(here / "db", full=True, engine="ray", jobs=2, scratch=here) == alone, alone
    assert alone.is_clean and alone.contigs > 40
    ray.shutdown()
    cluster.shutdown()
    print("the same rows")
"""


@pytest.mark.slow
def test_a_cluster_loses_a_node_and_no_row(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    program = textwrap.dedent(ON_A_CLUSTER)
    environment = os.environ | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=250,
    )
    assert done.stdout.endswith("the same rows\n"), done.stdout + done.stderr


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_the_cause_that_is_named(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from sharded_eden.jobs import Engine, _Worker, run_tasks\n"
        "def work(task, say):\n    return task\n"
        "print(list(run_tasks(work, range(4), Engine('local', 2))))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    told = done.stderr.split("EdenError: no worker process could start", 1)[1]
    assert "if __name__ == '__main__':" in told
    assert "memory" not in told
