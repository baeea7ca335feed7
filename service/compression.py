"""gzip shared by many streams: blocks that fit into any of them, in any order (RFC 1951, 1952).

Each piece of text is compressed on its own and ends at a whole byte with nothing to refer back to,
so that a stream may begin and go on with any of them. A gzip trailer would need a checksum of all
that a stream was sent, so there is none: streams end where the text does.
"""

from __future__ import annotations

import struct
import time
import zlib

from service.counts import Counts

HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""Begins a gzip stream: deflate, without name, time or system."""

SYNC = b"\0\0\0\xff\xff"
"""An empty stored block: Go's decoder shows what it has when it sees one, zlib's flush ends so."""

MAX_STORED_BYTES = 65_535
"""What one stored block can hold."""

SMALL_BYTES = 4096
"""Up to here a window of 4 KiB finds all that one of 32 KiB does, and is set up 8 times faster."""

QUICK_BYTES = 65_536
"""Beyond this only the fastest level keeps within 5 ms, and not for all that is published."""

MAX_COMPRESSED_BYTES = 393_216
"""What is larger takes too long, however well it compresses, and is stored."""

KEPT_BYTES = 1_048_576
"""What is kept for views that send the same: those of users who share a busy channel."""

_stored_head = struct.Struct("<BHH").pack


class Compressor:
    """Makes blocks; texts below `min_bytes` are stored, as compressing them saves too little."""

    def __init__(self, min_bytes: int, counts: Counts | None = None) -> None:
        self._counts = counts or Counts()
        self._min_bytes = min_bytes
        self._kept: dict[bytes, bytes] = {}
        self._kept_bytes = 0

    def blocks(self, data: bytes) -> bytes:
        """`data` as whole blocks, none of them the last of a stream; nothing for nothing."""
        return self._kept.get(data) or self._make(data)

    def _make(self, data: bytes) -> bytes:
        started = time.perf_counter()
        if len(data) >= self._min_bytes and _is_quick(data):
            made = _deflated(data)
            self._keep(data, made)
        else:
            made = _stored(data)
        self._counts.compression_input_bytes += len(data)
        self._counts.compression_output_bytes += len(made)
        self._counts.compression_seconds += time.perf_counter() - started
        return made

    def _keep(self, data: bytes, made: bytes) -> None:
        if self._kept_bytes > KEPT_BYTES:
            self._kept.clear()
            self._kept_bytes = 0
        self._kept[data] = made
        self._kept_bytes += len(data) + len(made)


def _is_quick(data: bytes) -> bool:
    """Whether `data` can be compressed within 5 ms: a large one such as base64 gains little."""
    if len(data) <= QUICK_BYTES:
        return True
    if len(data) > MAX_COMPRESSED_BYTES:
        return False
    starts = (0, len(data) // 2, len(data) - SMALL_BYTES)
    samples = [data[start : start + SMALL_BYTES] for start in starts]
    return all(len(zlib.compress(one, 1)) < len(one) * 2 / 3 for one in samples)


def _deflated(data: bytes) -> bytes:
    if len(data) <= SMALL_BYTES:
        level, window_bits, memory = 4, 12, 5
    else:
        level, window_bits, memory = 4 if len(data) <= QUICK_BYTES else 1, 15, 8
    deflate = zlib.compressobj(level, zlib.DEFLATED, -window_bits, memory)
    return deflate.compress(data) + deflate.flush(zlib.Z_FULL_FLUSH)


def _stored(data: bytes) -> bytes:
    if not data:
        return b""
    made = bytearray()
    for start in range(0, len(data), MAX_STORED_BYTES):
        part = data[start : start + MAX_STORED_BYTES]
        made += _stored_head(0, len(part), len(part) ^ 0xFFFF) + part
    return bytes(made + SYNC)
