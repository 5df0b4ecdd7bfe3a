"""One worker for many requests: speech is made in a thread, one request after the other, and read by coroutines."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing


class QueueFullError(Exception):
    """As many requests as allowed are waiting already."""


class SpeechJob:
    """The bytes of one request, piece by piece: an asynchronous iterator that raises what making them raised.

    Pieces that are not read yet are kept, so that a slow reader does not hold up the requests behind it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.cancelled = threading.Event()

    def put(self, piece: bytes | Exception | None) -> None:
        """Called by the worker: bytes, at last None, or what went wrong."""
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
        except RuntimeError:  # the event loop has ended, and the reader with it
            self.cancelled.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await self._pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece


class SpeechQueue:
    """waiting: how many requests may wait beside the one that is being spoken. A request counts until it is released,
    which bounds the speech that is kept for slow readers too."""

    def __init__(self, waiting: int) -> None:
        if waiting < 0:
            raise ValueError(f"The number of waiting requests must not be negative, got {waiting}.")
        self._most = waiting + 1
        self._jobs: set[SpeechJob] = set()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="speech")

    def __len__(self) -> int:
        return len(self._jobs)

    def submit(self, make_pieces: Callable[[], Iterator[bytes]]) -> SpeechJob:
        """make_pieces runs in the worker; its iterator is closed when the job is released early. To be called from a
        coroutine, and followed by `release`. Raises QueueFullError."""
        if len(self._jobs) >= self._most:
            raise QueueFullError
        job = SpeechJob()
        self._jobs.add(job)
        self._worker.submit(self._run, job, make_pieces)
        return job

    def release(self, job: SpeechJob) -> None:
        """Ends a job, whether it is done or not: what is being spoken stops after its next piece."""
        job.cancelled.set()
        self._jobs.discard(job)

    def close(self) -> None:
        """Ends all jobs and waits for the worker."""
        for job in list(self._jobs):
            self.release(job)
        self._worker.shutdown(wait=True, cancel_futures=True)

    @staticmethod
    def _run(job: SpeechJob, make_pieces: Callable[[], Iterator[bytes]]) -> None:
        if job.cancelled.is_set():
            return
        try:
            with closing(make_pieces()) as pieces:
                for piece in pieces:
                    if job.cancelled.is_set():
                        return
                    if piece:
                        job.put(piece)
            job.put(None)
        except Exception as error:  # whatever it is, the coroutine that waits must hear of it
            job.put(error)
