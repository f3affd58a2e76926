"""Operations that were planned on a plane, and are performed chunk by chunk, in the threads that there are."""

import threading
from collections.abc import Callable


class PlannedWork:
    """An operation that was planned on a plane: ``on_chunk(index)`` once for each of its chunks, in any threads.

    ``on_end(error)`` follows the last chunk, or one that failed.
    """

    def __init__(
        self,
        chunks: int,
        on_chunk: Callable[[int], None],
        on_end: Callable[[BaseException | None], None],
    ) -> None:
        self.chunks = chunks
        self._on_chunk = on_chunk
        self._on_end = on_end
        self._left = chunks
        self._lock = threading.Lock()

    def perform(self, index: int) -> bool:
        """Perform it on one chunk. Returns whether that was the last one."""
        try:
            self._on_chunk(index)
        except BaseException as error:
            self._on_end(error)
            raise
        with self._lock:
            self._left -= 1
            is_last = not self._left
        if is_last:
            self._on_end(None)
        return is_last
