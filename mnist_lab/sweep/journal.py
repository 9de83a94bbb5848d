"""The file of a study, which outlives a disk that was full and a power cut."""

from __future__ import annotations

import os
from pathlib import Path

from optuna.storages.journal import JournalFileOpenLock


class WholeLines(JournalFileOpenLock):
    """The lock that Optuna takes to append to a journal. Whoever has it finds the file ending in a whole line.

    What a stopped process left of a line is cut off: Optuna would append to it, and could never read that line again.

    Args:
        path: the journal's.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def acquire(self) -> bool:
        """Waits for the lock, and mends the file."""
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
