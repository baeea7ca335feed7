"""The directory where gunicorn's workers share their metrics: private, and gone when unused.

gunicorn's master makes it, so prometheus_client stays out: that imports ssl before it is patched.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "pushline-metrics-"


class MetricsDirectory:
    """A new directory, locked until its maker and all that it forked are gone.

    Those that nobody holds any more, as after kill -9, are removed first.
    """

    def __init__(self, parent: str | None, uid: int | None = None, gid: int | None = None) -> None:
        """Make it in `parent`, by default where temporary files go; raises OSError.

        It belongs to `uid` and `gid`, by default to this process: workers may have other ones.
        """
        where = Path(parent or tempfile.gettempdir())
        owners = {os.geteuid(), uid}
        for old in where.glob(f"{PREFIX}*"):
            lock = _locked(old, owners)
            if lock is not None:
                shutil.rmtree(old, ignore_errors=True)
                os.close(lock)
        new = Path(tempfile.mkdtemp(prefix="pushline-", dir=where))
        if uid not in (None, os.geteuid()) or gid not in (None, os.getegid()):
            # Only then: a service that systemd confines may change no owner at all.
            os.chown(new, -1 if uid is None else uid, -1 if gid is None else gid)
        self._lock = _locked(new, owners)
        # Under its own name only with the lock: another master that starts now would remove it.
        self.path = new.rename(new.with_name(f"{PREFIX}{new.name.removeprefix('pushline-')}"))

    def forget(self, slot: int) -> None:
        """Remove the gauges of a dead worker; whoever gets its slot goes on with its counters."""
        for file in self.path.glob(f"gauge_live*_{slot}.db"):
            file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Hold it no longer."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(directory: Path, owners: set[int | None]) -> int | None:
    """The lock of a directory of one of `owners`, as a descriptor; None where it can't be had."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_uid in owners:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
