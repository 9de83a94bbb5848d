"""The file of a study, which survives a full disk and a power cut."""

from __future__ import annotations

import os
from pathlib import Path

from optuna.storages.journal import JournalFileOpenLock


class WholeLines(JournalFileOpenLock):
    """The lock that Optuna takes to append to a journal; acquiring it makes sure that the file ends in a whole line.

    The partial line that a stopped process left is cut off: Optuna would append to it and could then never read it.

    Args:
        path: the journal file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def acquire(self) -> bool:
        """Wait for the lock, and repair the file. Returns True.

        Raises:
            OSError: the file can't be read or written; the lock is released.
        """
        super().acquire()
        try:
            with self._path.open("rb+") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                if file.read() not in (b"", b"\n"):
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
        except BaseException:
            self.release()
            raise
        return True
