"""The directory of metrics: private, kept while anybody uses it, and removed after that."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import gevent
import pytest

from service.metrics_directory import PREFIX, MetricsDirectory


def let_go(made: MetricsDirectory) -> None:
    """Let a directory go as its maker's end does."""
    made.release()
    gevent.sleep(0.01)  # gevent's os.close() takes effect when the loop wakes up


def test_it_is_private(tmp_path: Path) -> None:
    """Nobody else looks into it, and in the end nothing is left."""
    made = MetricsDirectory(str(tmp_path))
    assert made.path.parent == tmp_path
    assert made.path.stat().st_mode & 0o777 == 0o700
    (made.path / "counter_0.db").touch()
    made.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives things away")
def test_it_belongs_to_the_workers(tmp_path: Path) -> None:
    """Workers may run as another user than the master; their leavings are still found."""
    made = MetricsDirectory(str(tmp_path), 65_534, 65_534)
    assert (made.path.stat().st_uid, made.path.stat().st_gid) == (65_534, 65_534)
    let_go(made)
    MetricsDirectory(str(tmp_path), 65_534, 65_534).remove()
    assert not made.path.exists()


def test_what_is_forsaken_goes(tmp_path: Path) -> None:
    """The next master removes what a killed one has left, not what somebody still holds."""
    held, forsaken = (MetricsDirectory(str(tmp_path)) for _ in range(2))
    (forsaken.path / "counter_0.db").touch()
    let_go(forsaken)
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path)
    (tmp_path / f"{PREFIX}file").touch()
    new = MetricsDirectory(str(tmp_path))
    assert not forsaken.path.exists()
    kept = {held.path.name, new.path.name, f"{PREFIX}link", f"{PREFIX}file"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    for one in (held, new):
        one.remove()


def test_a_fork_holds_it_too(tmp_path: Path) -> None:
    """Workers outlive a killed master for a moment, and go on writing."""
    reading, writing = os.pipe()
    made = MetricsDirectory(str(tmp_path))
    pid = os.fork()
    if pid == 0:
        os.read(reading, 1)
        os._exit(0)
    let_go(made)
    MetricsDirectory(str(tmp_path)).remove()
    assert made.path.exists()
    os.write(writing, b"x")
    os.waitpid(pid, 0)
    MetricsDirectory(str(tmp_path)).remove()
    assert not made.path.exists()
    os.close(reading)
    os.close(writing)


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a place of its own it is where temporary files go; another user's is let alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = MetricsDirectory(None)
    assert made.path.parent == tmp_path
    let_go(made)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    other = MetricsDirectory(None)
    assert made.path.exists()
    other.remove()


def test_no_owner_is_changed_without_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where workers run as their master does, nothing is asked for that a system may refuse."""
    monkeypatch.setattr(os, "chown", lambda *_: pytest.fail("an owner is changed"))
    for owner in ((None, None), (os.geteuid(), os.getegid())):
        made = MetricsDirectory(str(tmp_path), *owner)
        assert made.path.is_dir()
        made.remove()
