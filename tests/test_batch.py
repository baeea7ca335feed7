"""Joined frames, and the framing of HTTP/1.1 around them."""

from __future__ import annotations

import random

import pytest

from service.batch import LAST_CHUNK, MAX_BATCH_BYTES, chunk, joined
from service.frame import Frame
from tests.sse_client import ChunkedBody, End


def frames_of(*sizes: int) -> list[Frame]:
    """Frames of the given sizes, each of another letter."""
    return [Frame(None, "message", bytes([97 + n % 26]) * size) for n, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ((), []),
        ((5,), [5]),
        ((5, 6, 7), [18]),
        ((MAX_BATCH_BYTES - 1, 1), [MAX_BATCH_BYTES]),
        ((MAX_BATCH_BYTES, 1), [MAX_BATCH_BYTES, 1]),
        ((MAX_BATCH_BYTES + 5,), [MAX_BATCH_BYTES + 5]),
        ((3, MAX_BATCH_BYTES + 5, 4, 5), [3, MAX_BATCH_BYTES + 5, 9]),
        ((40_000, 40_000, 40_000), [40_000, 40_000, 40_000]),
    ],
)
def test_batches_are_bounded(sizes: tuple[int, ...], batches: list[int]) -> None:
    """A joined batch is at most 64 KiB, or one event that is larger; nothing is cut."""
    assert [len(batch.plain) for batch in joined(frames_of(*sizes))] == batches


def test_joining_keeps_every_byte_in_order() -> None:
    """Batches one after the other are the frames one after the other."""
    chance = random.Random(1)
    frames = frames_of(*(chance.choice([10, 1000, 30_000, 70_000]) for _ in range(200)))
    batches = list(joined(frames))
    assert b"".join(batch.plain for batch in batches) == b"".join(frame.data for frame in frames)
    for batch in batches:
        assert len(batch.plain) <= MAX_BATCH_BYTES or len(batch.plain) == 70_000


def test_chunks_are_read_back() -> None:
    """Chunks and the last chunk are a whole body to a strict reader."""
    reader = ChunkedBody()
    assert reader.feed(chunk(b"a" * 15) + chunk(b"") + chunk(b"b" * 70_000)) == b"a" * 15 + (
        b"b" * 70_000
    )
    assert reader.finished is None
    assert reader.feed(LAST_CHUNK) == b""
    assert reader.finished is End.TERMINATED


def test_nothing_is_no_chunk() -> None:
    """An empty chunk would end the body, so nothing is framed as nothing."""
    assert chunk(b"") == b""
