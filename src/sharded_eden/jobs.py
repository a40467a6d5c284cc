"""Where tasks run (in this process, in a pool of processes, or on a Ray cluster).

Input: a function and tasks that can be pickled. Output: the result or the error of each task, in the order in which they end.
The function is called as `function(task, say)`; `say` sends a small message to the process that runs the tasks. Tasks are read
from their iterator as they are needed, so there may be millions.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from queue import Empty
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from sharded_eden.errors import EdenError, MissingExtra, UsageError

EngineName = Literal["local", "ray"]

Task = TypeVar("Task")
Result = TypeVar("Result")
Say: TypeAlias = Callable[[Any], object]
Work: TypeAlias = Callable[[Task, Say], Result]

WAIT_SECONDS = 0.2
"""How long the messages of a pool's workers may wait before they are delivered."""


MOST_JOBS = 1024
"""The largest number of processes: each takes memory and file descriptors, even while it is idle."""


def usable_processors() -> int:
    """Return how many processors this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Engine:
    """Where tasks run.

    Args:
        name: `local` or `ray`.
        jobs: number of tasks that run at the same time; 1 with `local` uses this process. None with `ray`: one for each
            processor of the cluster.
        address: of a Ray cluster (`auto` for the one this machine belongs to).
    """

    name: EngineName = "local"
    jobs: int | None = 1
    address: str | None = None

    def __post_init__(self) -> None:
        if self.name not in {"local", "ray"}:
            raise UsageError(f"--engine must be 'local' or 'ray', not {self.name!r}")
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"--jobs must be at least 1, not {self.jobs}")
        if self.jobs is not None and self.jobs > MOST_JOBS:
            raise UsageError(f"--jobs must be at most {MOST_JOBS}, not {self.jobs}")
        if self.address is not None and self.name != "ray":
            raise UsageError(f"--address {self.address} needs --engine ray")


@dataclass(frozen=True)
class Ended(Generic[Task, Result]):
    """The result of a task, or its error."""

    task: Task
    result: Result | None = None
    error: BaseException | None = None


class TaskStopped(BaseException):
    """Raised inside the tasks of a pool when the run is stopped, wherever they are, as Ctrl-C is in other programs."""


def run_tasks(
    function: Work[Task, Result], tasks: Iterable[Task], engine: Engine, *, heard: Say | None = None
) -> Iterator[Ended[Task, Result]]:
    """Run tasks and yield the result or the error of each.

    Args:
        function: a function of a module, called with a task and `say`.
        tasks: read as they are needed.
        engine: where they run.
        heard: called in this process with each message of a task. With Ray, messages are dropped.

    Raises:
        EdenError: a worker process died; what other tasks wrote is kept.
        MissingExtra: Ray is requested and not installed.
    """
    heard = heard or (lambda message: None)
    if engine.name == "ray":
        return _run_on_ray(function, iter(tasks), engine)
    if engine.jobs == 1:
        return _run_here(function, iter(tasks), heard)
    return _run_in_pool(function, iter(tasks), engine.jobs or usable_processors(), heard)


def _run_here(function: Work[Task, Result], tasks: Iterator[Task], heard: Say) -> Iterator[Ended[Task, Result]]:
    for task in tasks:
        try:
            ended = Ended(task, result=function(task, heard))
        except Exception as error:
            ended = Ended(task, error=error)
        yield ended


def connect_polars_to_numpy() -> None:
    """Let Polars load NumPy's C interface now, where the handler of Ctrl-C raises no exception.

    Polars loads it for the first array that it is given. An exception that a signal handler raises in that moment, such as
    KeyboardInterrupt, makes Polars print a Rust backtrace and raise its PanicException instead. A Ctrl-C that comes while this
    function runs is handled at its end.
    """
    import numpy as np
    import polars as pl

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        pl.Series(np.zeros(1))  # Python's signal handlers run in the main thread; None: the handler is not Python's
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        pl.Series(np.zeros(1))
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        signal.raise_signal(signal.SIGINT)


class _Worker:
    """A worker process of a pool."""

    messages: Any = None
    """The pipe of its messages, which all workers share."""
    one_at_a_time: Any = None
    """The lock of that pipe."""
    is_busy = False
    """Whether it is in a task, and not in `say`: a message that is cut short would block its reader."""
    is_stopped = False


def _begin_worker(messages: Connection, one_at_a_time: Any, stop: Connection, begun: Any) -> None:
    _Worker.messages, _Worker.one_at_a_time = messages, one_at_a_time
    begun.set()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent stops its workers
    connect_polars_to_numpy()  # before the signal that stops a task has its handler
    signal.signal(signal.SIGUSR1, _stop_task)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_obey, args=(parent, stop), daemon=True).start()


def _obey(parent: Any, stop: Connection) -> None:
    """Stop the task of this worker when the run is stopped. End at once when the process that started it is gone."""
    wait_for([parent.sentinel, stop])  # at its end, or when it is gone, the parent closes the pipe
    _Worker.is_stopped = True
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGUSR1)
    parent.join()
    os._exit(1)


def _stop_task(*_: object) -> None:
    if _Worker.is_busy:
        raise TaskStopped


def _say(message: object) -> None:
    _Worker.is_busy = False
    if _Worker.is_stopped:
        raise TaskStopped
    with _Worker.one_at_a_time:
        _Worker.messages.send(message)
    _Worker.is_busy = True


def _run_in_worker(function: Work[Task, Result], task: Task) -> Result:
    if _Worker.is_stopped:
        raise TaskStopped
    try:
        _Worker.is_busy = True
        return function(task, _say)
    finally:
        _Worker.is_busy = False


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Block SIGINT in the processes that the block starts, which would end in a traceback while they import modules."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_in_pool(
    function: Work[Task, Result], tasks: Iterator[Task], jobs: int, heard: Say
) -> Iterator[Ended[Task, Result]]:
    context = multiprocessing.get_context("spawn")  # a forked worker would inherit SQLite connections and threads
    begun = context.Event()
    received, messages = context.Pipe(duplex=False)
    stop_of_workers, stop = context.Pipe(duplex=False)
    listener = threading.Thread(target=_listen, args=(received, inbox := _Inbox()), daemon=True)
    listener.start()
    arguments = messages, context.Lock(), stop_of_workers, begun
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker, initargs=arguments)
    running: dict[Future[Result], Task] = {}
    try:
        while True:
            for task in islice(tasks, 2 * jobs - len(running)):
                with _without_ctrl_c():
                    future = pool.submit(_run_in_worker, function, task)
                running[future] = task
            if not running:
                break
            done, _ = wait(running, timeout=WAIT_SECONDS, return_when=FIRST_COMPLETED)
            inbox.deliver(heard)
            for future in done:
                task = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise EdenError(
                        "a worker process died, most likely because memory ran out. Run the same command again, with fewer "
                        f"--jobs than {jobs}: what is finished is kept"
                        if begun.is_set()
                        else "no worker process could start. Each imports the Python script that starts it, so the script "
                        "must call this package under `if __name__ == '__main__':`"
                    ) from error
                yield Ended(task, result=None if error else future.result(), error=error)
        inbox.deliver(heard)
    finally:
        stop.close()
        pool.shutdown(wait=True, cancel_futures=True)
        stop_of_workers.close()
        messages.close()  # the workers have ended: nobody holds this end of the pipe any more
        listener.join()
        received.close()


class _Inbox:
    """Messages between the thread that receives them and the one that runs the tasks."""

    def __init__(self) -> None:
        from queue import SimpleQueue

        self._queue: SimpleQueue[object] = SimpleQueue()
        self.put = self._queue.put

    def deliver(self, heard: Say) -> None:
        while True:
            try:
                heard(self._queue.get_nowait())
            except Empty:
                return


def _listen(messages: Connection, inbox: _Inbox) -> None:
    """Read the pipe until its end, all the time: a worker that writes to a full pipe would wait forever."""
    with suppress(Exception):  # its end, or a message that a killed worker has not sent to its end
        while True:
            inbox.put(messages.recv())


RAY_RETRIES = 5
"""How often a task is run again after its node or process died."""


def _run_on_ray(function: Work[Task, Result], tasks: Iterator[Task], engine: Engine) -> Iterator[Ended[Task, Result]]:
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("ray", "ray") from error
    started_here = not ray.is_initialized()
    if started_here:
        try:
            ray.init(address=engine.address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError) as error:
            raise UsageError(f"--address {engine.address}: no Ray cluster answers there ({error})") from error
    remote: Any = ray.remote(max_retries=RAY_RETRIES, num_cpus=1)(_run_quietly)
    resources: Any = ray.cluster_resources
    running: dict[Any, Task] = {}
    try:
        while True:
            width = engine.jobs or 2 * max(1, int(resources().get("CPU", 1)))
            for task in islice(tasks, max(0, width - len(running))):
                running[remote.remote(function, task)] = task
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                task = running.pop(reference)
                try:
                    ended = Ended(task, result=ray.get(reference))
                except ray.exceptions.RayTaskError as error:
                    ended = Ended(task, error=error.cause if isinstance(error.cause, Exception) else error)
                except ray.exceptions.RayError as error:
                    raise EdenError(
                        f"Ray gave a task up after {RAY_RETRIES} retries ({error}). What is finished is kept: run the "
                        "same command again"
                    ) from error
                yield ended
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if started_here:
            ray.shutdown()


def _run_quietly(function: Work[Task, Result], task: Task) -> Result:
    return function(task, lambda message: None)
