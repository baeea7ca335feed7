"""Blocks that any gzip stream may contain: in any order, from any start, each at its time."""

from __future__ import annotations

import base64
import random
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.compression import (
    HEADER,
    KEPT_BYTES,
    MAX_COMPRESSED_BYTES,
    MAX_STORED_BYTES,
    QUICK_BYTES,
    SMALL_BYTES,
    SYNC,
    Compressor,
)
from tests.encodings import gunzip

MIN_BYTES = 64
LIKE = b'{"price": 1.5, "symbol": "ABC"}, '
SIZES = (0, 1, MIN_BYTES - 1, MIN_BYTES, SMALL_BYTES, SMALL_BYTES + 1, MAX_STORED_BYTES,
         MAX_STORED_BYTES + 1, QUICK_BYTES + 1, 3 * MAX_STORED_BYTES)  # fmt: skip

pieces = st.lists(
    st.one_of(
        st.binary(max_size=200),
        st.sampled_from(SIZES).map(lambda size: (LIKE * (size // len(LIKE) + 1))[:size]),
        st.tuples(st.sampled_from(SIZES), st.integers(0, 9)).map(
            lambda made: random.Random(made[1]).randbytes(made[0])
        ),
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=60)
@given(pieces, st.randoms(use_true_random=False))
@example([b""] * 3, random.Random(1))
def test_any_blocks_in_any_order(texts: list[bytes], chance: random.Random) -> None:
    """Whatever was made before or after, and for whom: the text of each is there, in order."""
    compressor = Compressor(MIN_BYTES)
    made = [(text, compressor.blocks(text)) for text in texts]
    chance.shuffle(made)
    made = made[chance.randrange(len(made) + 1) :]
    assert gunzip(HEADER + b"".join(blocks for _, blocks in made)) == b"".join(
        text for text, _ in made
    )


@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(st.binary(max_size=99), st.just(LIKE * 20)), max_size=5))
def test_byte_by_byte(texts: list[bytes]) -> None:
    """However a stream is cut on its way; each text is there with the last byte of its blocks."""
    compressor = Compressor(MIN_BYTES)
    decoder = zlib.decompressobj(wbits=31)
    assert decoder.decompress(HEADER) == b""
    for text in texts:
        got = b""
        for byte in compressor.blocks(text):
            got += decoder.decompress(bytes([byte]))
        assert got == text


@pytest.mark.parametrize("size", SIZES)
def test_each_text_ends_with_an_empty_stored_block(size: int) -> None:
    """Go's decoder shows nothing of a stored block until it sees one; no block is the last."""
    blocks = Compressor(MIN_BYTES).blocks(b"x" * size)
    # The first three of its bits may share a byte with what is before it.
    assert blocks.endswith(SYNC[1:]) if size else blocks == b""


def test_small_texts_are_stored() -> None:
    """Below the limit nothing is compressed, from it on everything."""
    compressor = Compressor(MIN_BYTES)
    assert LIKE in compressor.blocks(LIKE)
    assert len(compressor.blocks(b"x" * (MIN_BYTES - 1))) == MIN_BYTES - 1 + 10
    assert len(compressor.blocks(b"x" * MIN_BYTES)) < 20


def test_large_texts_that_gain_little_are_stored() -> None:
    """Compressing them would hold everybody up for more than 5 ms."""
    compressor = Compressor(MIN_BYTES)
    coded = base64.b64encode(random.Random(1).randbytes(QUICK_BYTES))
    likes = LIKE * (MAX_COMPRESSED_BYTES // len(LIKE))
    assert len(compressor.blocks(coded[:QUICK_BYTES])) < QUICK_BYTES
    assert len(compressor.blocks(coded)) > len(coded)
    assert len(compressor.blocks(likes)) < len(likes) / 10
    assert len(compressor.blocks(likes + LIKE)) > len(likes)


def test_what_was_done_is_counted() -> None:
    """Bytes before and after, and the time."""
    compressor = Compressor(MIN_BYTES)
    texts = [LIKE, LIKE * 100]
    made = [compressor.blocks(text) for text in texts]
    assert compressor._counts.compression_input_bytes == sum(map(len, texts))
    assert compressor._counts.compression_output_bytes == sum(map(len, made))
    assert 0 < compressor._counts.compression_seconds < 1


def test_what_several_views_send_is_compressed_once() -> None:
    """The same text is made once while it is lately made, and only so much is kept."""
    compressor = Compressor(MIN_BYTES)
    texts = [b"%d" % number + LIKE * 1000 for number in range(100)]
    first = [compressor.blocks(text) for text in texts[:20]]
    assert [compressor.blocks(bytes(bytearray(text))) for text in texts[:20]] == first
    assert compressor._counts.compression_input_bytes == sum(map(len, texts[:20]))
    for text in texts:
        compressor.blocks(text)
    kept = sum(len(data) + len(made) for data, made in compressor._kept.items())
    assert 0 < kept == compressor._kept_bytes < KEPT_BYTES + 2 * len(texts[0])
    before = compressor._counts.compression_input_bytes
    assert compressor.blocks(texts[0]) == first[0]
    assert compressor._counts.compression_input_bytes == before + len(texts[0])
