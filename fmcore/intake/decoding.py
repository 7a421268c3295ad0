"""Many image files read at once, in their order: what comes does not depend on how many cores there are."""

import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from fmcore.intake.planes import ImageFile, UnreadableError
from fmcore.intake.reading import How, Read, brightest, read_image

CHUNK = 16  # files a task: a small one is read in the time that two tasks cost


class Levels:
    """Which value of 16-bit images is white: the one stated, or the largest of as many bits as all files need.

    A scan of 12 bits lies in a file of 16 and would be nearly black if 65,535 were white. The files are looked
    through when the first of 16 bits is met, so sets without any pay nothing.
    """

    def __init__(self, paths: Sequence[ImageFile], how: How, stated: int | None = None) -> None:
        self.white = stated
        self._paths, self._how, self._lock = paths, how, Lock()

    def __call__(self) -> int:
        with self._lock:
            if self.white is None:
                _import_plugins()
                with ThreadPoolExecutor(cores()) as pool:
                    largest = max(pool.map(lambda path: brightest(path, self._how), self._paths))
                self.white = max(255, 2 ** largest.bit_length() - 1)
            return self.white


def read_images(
    paths: Sequence[ImageFile], how: How, levels: Levels, workers: int | None = None
) -> Iterator[Read | UnreadableError]:
    """Reads images, on all cores unless told: each in its turn, or the error that names why it cannot be read.

    Threads are enough: decoders let go of Python's lock. A few hundred images at most wait to be taken.
    """
    _import_plugins()
    workers = workers or cores()

    def task(first: int) -> list[Read | UnreadableError]:
        return [_outcome(path, how, levels) for path in paths[first : first + CHUNK]]

    waiting: deque[Future[list[Read | UnreadableError]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for first in range(0, len(paths), CHUNK):
            waiting.append(pool.submit(task, first))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _outcome(path: ImageFile, how: How, levels: Levels) -> Read | UnreadableError:
    try:
        return read_image(path, how, levels)
    except UnreadableError as error:
        return error


def _import_plugins() -> None:
    """PIL imports its decoders when it meets the first file of a kind, which threads had better not do at once."""
    from PIL import (  # noqa: F401
        AvifImagePlugin,
        BmpImagePlugin,
        GifImagePlugin,
        Image,
        JpegImagePlugin,
        MpoImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    # Its limit is above ours, which refuses the file. (`catch_warnings` would not be safe among threads.)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
