"""One encoding of each kind, for subscribers in tests, and the way back."""

from __future__ import annotations

import zlib

from service.encoding import Encoding, Encodings

ENCODINGS = Encodings(256)
PLAIN = ENCODINGS.of(gzip=False, chunked=False)
CHUNKED = ENCODINGS.of(gzip=False, chunked=True)
GZIP = ENCODINGS.of(gzip=True, chunked=False)
GZIP_CHUNKED = ENCODINGS.of(gzip=True, chunked=True)


def framing(chunked: bool) -> Encoding:
    """Without compression."""
    return CHUNKED if chunked else PLAIN


def gunzip(data: bytes) -> bytes:
    """The text of a gzip stream that is still open; raises zlib.error when it is none."""
    decoder = zlib.decompressobj(wbits=31)
    text = decoder.decompress(data)
    assert not decoder.eof  # whatever follows would be thrown away
    return text
