"""Work done ahead of its consumer by a few threads, in order and in bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

__all__ = ["ahead", "limit", "workers"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


_limit = 0  # 0: none


def limit(processors: int) -> None:
    """Let this process use no more than so many processors, which it shares with others."""
    global _limit
    _limit = processors


def workers() -> int:
    """How many processors this process may use."""
    return _limit or len(os.sched_getaffinity(0))


def ahead(
    function: Callable[[_In], _Out],
    items: Iterable[_In],
    depth: int | None = None,
    initializer: Callable[[], object] | None = None,
) -> Iterator[_Out]:
    """`map(function, items)` with up to `depth` results (twice the processors by default) computed ahead.

    Results come in the order of the items. What `function` raises is raised here. Reading, hashing and decoding an
    image all release Python's global lock, so threads use every processor without copying pixels between processes.
    `initializer` is called in each thread before its first item.
    """
    remaining = iter(items)
    pending: deque[Future[_Out]] = deque()
    pool, wait = ThreadPoolExecutor(workers(), initializer=initializer), True
    try:
        for item in islice(remaining, depth or 2 * workers()):
            pending.append(pool.submit(function, item))
        while pending:
            result = pending.popleft().result()
            for item in islice(remaining, 1):
                pending.append(pool.submit(function, item))
            yield result
    except BaseException as error:
        wait = isinstance(error, Exception | GeneratorExit)  # who presses Ctrl-C does not wait for a large photograph
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)
