"""What gunicorn is told, as it reads it: by importing the module."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import KNOWN_SETTINGS, Config

import service.settings
from service.logs import ServiceLogger
from service.worker import PushlineWorker

PATH = Path(service.settings.__file__).with_name("gunicorn_conf.py")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of our variables is set but a Redis and the permission to run; no limit is changed."""
    for name in ("HOST", "PORT", "WEB_CONCURRENCY", "DRAIN_SECONDS", "LOG_FORMAT", "LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1")
    monkeypatch.setenv("PUBLISH_OPEN", "1")
    monkeypatch.setattr(service.settings, "raise_file_limit", lambda: None)


def read() -> dict[str, Any]:
    """Run the module and return what it defines."""
    return runpy.run_path(str(PATH))


def test_gunicorn_takes_it() -> None:
    """Every name that gunicorn knows has a value that gunicorn takes."""
    made = read()
    known = {setting.name for setting in KNOWN_SETTINGS}
    cfg = Config()
    taken = {name: value for name, value in made.items() if name in known}
    for name, value in taken.items():
        cfg.set(name, value)
    assert cfg.worker_class is PushlineWorker
    assert cfg.address == [("127.0.0.1", 8000)]
    assert cfg.workers == 1
    assert taken.keys() >= {"bind", "workers", "worker_class", "logger_class", "graceful_timeout"}


def test_the_settings_reach_gunicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Port, workers, keep-alive, log and drain come from our settings."""
    for name, value in (
        ("HOST", "::1"),
        ("PORT", "1234"),
        ("WEB_CONCURRENCY", "3"),
        ("KEEPALIVE_SECONDS", "95"),
        ("LOG_LEVEL", "debug"),
        ("LOG_FORMAT", "text"),
        ("DRAIN_SECONDS", "20.4"),
    ):
        monkeypatch.setenv(name, value)
    made = read()
    assert made["bind"] == "[::1]:1234"
    assert (made["workers"], made["keepalive"], made["loglevel"]) == (3, 95, "debug")
    assert issubclass(made["logger_class"], ServiceLogger)
    assert made["logger_class"].as_json is False


@pytest.mark.parametrize("drain", ["0", "10", "20", "600"])
def test_the_drain_has_room(drain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """gunicorn doesn't kill a worker before its drain, and the rest of its work, can be done."""
    monkeypatch.setenv("DRAIN_SECONDS", drain)
    assert read()["graceful_timeout"] >= float(drain) + 5


def test_the_smallest_plan_is_served_in_time() -> None:
    """With the defaults a worker is gone within the 30 s that Heroku gives from SIGTERM."""
    assert read()["graceful_timeout"] < 30


def test_what_would_break_streams_is_off() -> None:
    """Each of these would restart workers, or import before the patches."""
    made = read()
    assert made["max_requests"] == 0
    assert made["preload_app"] is False


def test_it_refuses_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that can't be used ends gunicorn with one line."""
    for name, value, part in (
        ("PORT", "x", "PORT='x'"),
        ("PUBLISH_OPEN", "0", "PUBLISH_OPEN=1"),
        ("JWT_ALGORITHMS", "HS256", "JWT_ALGORITHMS has HS256"),
        ("REDIS_URL", "", "REDIS_URL is not set"),
        ("AUTHORIZE_URL", "http://a..b/may?key=x", "AUTHORIZE_URL='http://a..b/may' can't be used"),
        ("JWT_JWKS_URL", "http://a..b/keys", "JWT_JWKS_URL='http://a..b/keys' can't be used"),
    ):
        with monkeypatch.context() as context:
            context.setenv(name, value)
            with pytest.raises(SystemExit) as raised:
                read()
        message = str(raised.value.code)
        assert message.startswith("pushline: ")
        assert part in message
        assert "\n" not in message


def test_without_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without /dev/shm gunicorn chooses a directory itself."""
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    assert read()["worker_tmp_dir"] is None


class Forked:
    """What stands in for gunicorn's workers."""

    metrics_slot = -1


class Arbiter:
    """What stands in for gunicorn's master."""

    def __init__(self) -> None:
        self.WORKERS: dict[int, Forked] = {}
        self.cfg = Config()


def test_metrics_have_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers share a directory of this user's alone; each has a slot, and a dead one's is free.

    Of a dead worker the counters stay and the gauges go; in the end all of it goes.
    """
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere")
    monkeypatch.setenv("PUSHLINE_METRICS_SLOT", "")
    made, master = read(), Arbiter()
    made["on_starting"](master)
    directory = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    assert directory.stat().st_mode & 0o777 == 0o700
    for pid in range(12):
        master.WORKERS[pid] = Forked()
        made["pre_fork"](master, master.WORKERS[pid])
        assert os.environ["PUSHLINE_METRICS_SLOT"] == str(pid)
        for kind in ("counter", "gauge_livesum", "gauge_livemin"):
            (directory / f"{kind}_{pid}.db").touch()
    before = {path.name for path in directory.iterdir()}
    made["child_exit"](master, master.WORKERS.pop(1))
    gone = before - {path.name for path in directory.iterdir()}
    assert gone == {"gauge_livesum_1.db", "gauge_livemin_1.db"}, "not those of 11"
    heir = Forked()
    made["pre_fork"](master, heir)
    assert heir.metrics_slot == 1
    made["on_exit"](master)
    assert not directory.exists()
