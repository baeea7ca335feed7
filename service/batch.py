"""Frames joined for one `send`, and the framing that HTTP/1.1 puts around them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from service.frame import Frame

MAX_BATCH_BYTES = 65_536
"""Largest joined batch: a stream's send buffer in the kernel. A single event may be larger."""

LAST_CHUNK = b"0\r\n\r\n"
"""Ends a chunked body, so that a client knows that nothing was cut (RFC 9112, section 7.1)."""


def chunk(data: bytes) -> bytes:
    """`data` as one chunk of HTTP/1.1 (RFC 9112, section 7.1); nothing for nothing."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


class Batch:
    """Frames joined for one `send`, with room for each of its encodings (encoding.py)."""

    __slots__ = ("chunked", "chunked_gzip", "fixed", "frames", "gzip", "plain")

    def __init__(self, plain: bytes, frames: Sequence[Frame] = ()) -> None:
        self.plain = plain
        self.frames = frames
        self.fixed = False
        self.chunked: bytes | None = None
        self.gzip: bytes | None = None
        self.chunked_gzip: bytes | None = None

    @classmethod
    def finished(cls, data: bytes) -> Batch:
        """Bytes that are sent as they are, in any encoding, and that no overflow may drop."""
        batch = cls(data)
        batch.fixed = True
        batch.chunked = batch.gzip = batch.chunked_gzip = data
        return batch


def joined(frames: Iterable[Frame]) -> Iterator[Batch]:
    """Join `frames` into batches of at most MAX_BATCH_BYTES, or of one frame that is larger."""
    parts: list[Frame] = []
    size = 0
    for frame in frames:
        if parts and size + len(frame.data) > MAX_BATCH_BYTES:
            yield _batch(parts)
            parts, size = [], 0
        parts.append(frame)
        size += len(frame.data)
    if parts:
        yield _batch(parts)


def _batch(frames: list[Frame]) -> Batch:
    if len(frames) == 1:
        return Batch(frames[0].data, frames)
    return Batch(b"".join([frame.data for frame in frames]), frames)
