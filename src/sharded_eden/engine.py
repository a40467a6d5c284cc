"""Where tasks run: in this process, in a pool of processes, or on a Ray cluster.

Enter: a function, and tasks that can be pickled. Leaves: what became of each, in the order in which they end. A task's
function is the same everywhere, `function(task, say)`: `say` takes a small message to whoever runs the tasks. No more tasks
wait than keep everyone busy, so that a million of them may come from an iterator.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
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


@dataclass(frozen=True)
class Engine:
    """Where tasks run.

    Args:
        name: `local` or `ray`.
        jobs: how many at a time; 1 on `local` is this process. None on `ray`: as many as the cluster has processors.
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
        if self.address is not None and self.name != "ray":
            raise UsageError(f"--address {self.address} needs --engine ray")


@dataclass(frozen=True)
class Ended(Generic[Task, Result]):
    """What became of a task: a result, or an error."""

    task: Task
    result: Result | None = None
    error: BaseException | None = None


class TaskStopped(Exception):
    """Raised inside a task, by `say`, when whoever runs it wants it no longer."""


def run_tasks(
    function: Work[Task, Result], tasks: Iterable[Task], engine: Engine, *, heard: Say | None = None
) -> Iterator[Ended[Task, Result]]:
    """Run tasks and yield what became of each.

    Args:
        function: a function of a module, called with a task and `say`.
        tasks: read as they are needed.
        engine: where they run.
        heard: called in this process with each message that a task says. On Ray nothing is heard.

    Raises:
        EdenError: a worker process died; what other tasks wrote stands.
        MissingExtra: Ray is asked for and not installed.
    """
    heard = heard or (lambda message: None)
    if engine.name == "ray":
        return _run_on_ray(function, iter(tasks), engine)
    if engine.jobs == 1:
        return _run_here(function, iter(tasks), heard)
    return _run_in_pool(function, iter(tasks), engine.jobs or os.cpu_count() or 1, heard)


def _run_here(function: Work[Task, Result], tasks: Iterator[Task], heard: Say) -> Iterator[Ended[Task, Result]]:
    for task in tasks:
        try:
            ended = Ended(task, result=function(task, heard))
        except Exception as error:
            ended = Ended(task, error=error)
        yield ended


# In a worker: how it is heard, and whether it shall go on.
_messages: Any = None
_stop: Any = None


def _begin_worker(messages: Any, stop: Any) -> None:
    global _messages, _stop
    _messages, _stop = messages, stop
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver then stops its workers
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    """End this worker at once when the process that started it is gone, however it ended."""
    parent.join()
    os._exit(1)


def _say(message: object) -> None:
    if _stop.is_set():
        raise TaskStopped
    _messages.put(message)


def _run_in_worker(function: Work[Task, Result], task: Task) -> Result:
    return function(task, _say)


def _run_in_pool(
    function: Work[Task, Result], tasks: Iterator[Task], jobs: int, heard: Say
) -> Iterator[Ended[Task, Result]]:
    context = multiprocessing.get_context("spawn")  # a forked worker would inherit SQLite connections and threads
    messages, stop = context.SimpleQueue(), context.Event()
    listener = threading.Thread(target=_listen, args=(messages, inbox := _Inbox()), daemon=True)
    listener.start()
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker, initargs=(messages, stop))
    running: dict[Future[Result], Task] = {}
    try:
        while True:
            for task in islice(tasks, 2 * jobs - len(running)):
                running[pool.submit(_run_in_worker, function, task)] = task
            if not running:
                break
            done, _ = wait(running, timeout=WAIT_SECONDS, return_when=FIRST_COMPLETED)
            inbox.deliver(heard)
            for future in done:
                task = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise EdenError(
                        "a worker process died, as it does when memory runs out. What is finished is kept: run the same "
                        f"command again, with fewer --jobs than {jobs}"
                    ) from error
                yield Ended(task, result=None if error else future.result(), error=error)
        inbox.deliver(heard)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        messages.put(None)
        listener.join()
        messages.close()


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


def _listen(messages: Any, inbox: _Inbox) -> None:
    """Empty the pipe at all times: a worker that writes to a full one would wait for ever."""
    while (message := messages.get()) is not None:
        inbox.put(message)


RAY_RETRIES = 5
"""How often a task is run again whose node or process died."""


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
