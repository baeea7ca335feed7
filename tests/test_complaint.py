"""What Redis refuses for long is told once for each time."""

from __future__ import annotations

import logging

import pytest

from service.complaint import Complaint
from service.errors import RedisDown, RedisRefused

log = logging.getLogger("pushline.test")


def test_a_refusal_is_a_warning_once(caplog: pytest.LogCaptureFixture) -> None:
    """Until it is over; that Redis is away is no warning of its own, and ends none."""
    caplog.set_level(logging.DEBUG, "pushline.test")
    complaint = Complaint(log, "it can't be told")
    refused = RedisRefused("redis_out_of_memory", "used memory > 'maxmemory'")
    for error in (RedisDown(), refused, refused, RedisDown(), refused):
        complaint.failed(error)
    levels = [record.levelname for record in caplog.records]
    assert levels == ["DEBUG", "WARNING", "DEBUG", "DEBUG", "DEBUG"]
    assert caplog.messages[1] == "it can't be told: used memory > 'maxmemory'"
    complaint.over()
    complaint.failed(refused)
    assert caplog.records[-1].levelname == "WARNING"
