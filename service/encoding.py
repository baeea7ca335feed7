"""How streams are written: as gzip or not, in chunks or not. Those of one kind share their bytes.

Each kind makes the bytes of a batch when it is first asked, and keeps them there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from service.batch import LAST_CHUNK, Batch, chunk
from service.compression import HEADER, Compressor
from service.counts import Counts
from service.frame import Frame


class Encoding:
    """Text as it is: HTTP/1.0, or a server that makes chunks itself."""

    def encode(self, batch: Batch) -> bytes:
        """The bytes of `batch`."""
        return batch.plain

    def start(self, data: bytes) -> bytes:
        """A stream's first bytes, which carry `data`."""
        return data

    def end(self, data: bytes) -> bytes:
        """A stream's last bytes, which carry `data`."""
        return data


class Chunked(Encoding):
    """Text in the chunks of HTTP/1.1, whose heads are part of the shared bytes."""

    def encode(self, batch: Batch) -> bytes:
        """The batch as one chunk."""
        if batch.chunked is None:
            batch.chunked = chunk(batch.plain)
        return batch.chunked

    def start(self, data: bytes) -> bytes:
        """A chunk."""
        return chunk(data)

    def end(self, data: bytes) -> bytes:
        """A chunk, and the last one."""
        return chunk(data) + LAST_CHUNK


class Gzip(Encoding):
    """Compressed text, without a trailer."""

    def __init__(self, compressor: Compressor) -> None:
        self._blocks = compressor.blocks

    def encode(self, batch: Batch) -> bytes:
        """The batch, compressed once."""
        if batch.gzip is None:
            batch.gzip = b"".join(map(self._blocks, _apart(batch.frames) or [batch.plain]))
        return batch.gzip

    def start(self, data: bytes) -> bytes:
        """With the header."""
        return HEADER + self._blocks(data)

    def end(self, data: bytes) -> bytes:
        """Like all that came before."""
        return self._blocks(data)


class ChunkedGzip(Gzip):
    """Compressed text in chunks."""

    def encode(self, batch: Batch) -> bytes:
        """The compressed batch as one chunk."""
        if batch.chunked_gzip is None:
            batch.chunked_gzip = chunk(super().encode(batch))
        return batch.chunked_gzip

    def start(self, data: bytes) -> bytes:
        """A chunk."""
        return chunk(super().start(data))

    def end(self, data: bytes) -> bytes:
        """A chunk, and the last one."""
        return chunk(super().end(data)) + LAST_CHUNK


class Encodings:
    """The kinds of a service; with `compress_min_bytes` of 0 it doesn't compress."""

    def __init__(self, compress_min_bytes: int, counts: Counts | None = None) -> None:
        compressor = Compressor(compress_min_bytes, counts)
        self.compresses = compress_min_bytes > 0
        self._kinds = {
            (False, False): Encoding(),
            (False, True): Chunked(),
            (True, False): Gzip(compressor),
            (True, True): ChunkedGzip(compressor),
        }

    def of(self, *, gzip: bool, chunked: bool) -> Encoding:
        """One of them."""
        return self._kinds[gzip, chunked]


def _apart(frames: Sequence[Frame]) -> list[bytes]:
    """What is compressed on its own: each private event, so that its size tells nothing of how
    like it is to what others have published. Nothing when none of `frames` is private.
    """
    if all(frame.private is None for frame in frames):
        return []
    parts: list[bytes] = []
    for private, group in groupby(frames, lambda frame: frame.private is not None):
        data = [frame.data for frame in group]
        parts += data if private else [b"".join(data)]
    return parts
