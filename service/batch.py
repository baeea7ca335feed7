"""Frames joined for one `send`, and the framing that HTTP/1.1 puts around them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from service.frame import Frame

MAX_BATCH_BYTES = 65_536
"""Largest joined batch: a stream's send buffer in the kernel. A single event may be larger."""

LAST_CHUNK = b"0\r\n\r\n"
"""Ends a chunked body, so that a client knows that nothing was cut (RFC 9112, section 7.1)."""


def chunk(data: bytes) -> bytes:
    """`data` as one chunk of HTTP/1.1 (RFC 9112, section 7.1); nothing for nothing."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


class Batch:
    """Frames joined for one `send`, encoded once for each way of framing."""

    __slots__ = ("_chunked", "plain")

    def __init__(self, plain: bytes) -> None:
        self.plain = plain
        self._chunked: bytes | None = None

    def chunked(self) -> bytes:
        """The batch as one chunk, made when first asked for."""
        if self._chunked is None:
            self._chunked = chunk(self.plain)
        return self._chunked


def joined(frames: Iterable[Frame]) -> Iterator[Batch]:
    """Join `frames` into batches of at most MAX_BATCH_BYTES, or of one frame that is larger."""
    parts: list[bytes] = []
    size = 0
    for frame in frames:
        if parts and size + len(frame.data) > MAX_BATCH_BYTES:
            yield Batch(b"".join(parts))
            parts, size = [], 0
        parts.append(frame.data)
        size += len(frame.data)
    if parts:
        yield Batch(b"".join(parts))
