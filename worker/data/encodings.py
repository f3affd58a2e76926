"""From the bytes of a text file to UTF-8, and what had to be done for it."""

import codecs
from typing import Final

PIECE_BYTES: Final = 1 << 24
"""How many bytes are decoded at once, so that a text of gigabytes needs no copy of several times its size."""
HEAD_BYTES: Final = 8000
"""A zero byte among this many first bytes marks a binary file, as for git."""
MARKS: Final = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
"""Byte-order marks of encodings other than UTF-8; longer ones first, since UTF-32's begins with UTF-16's."""
CONTROLS: Final = frozenset(range(32)) - frozenset(b"\t\n\v\f\r\x1b")
"""Bytes that no text has, in UTF-8 or Latin-1."""
ASCII: Final = bytes(range(128))


def to_utf8(content: bytes) -> tuple[bytes | None, str]:
    """A file's text in UTF-8 (None: it is no text), and in words what was done; empty: nothing.

    A text that is neither UTF-8 nor has a mark is taken for Windows-1252, which includes Latin-1's letters.
    There are three exceptions, which stay unchanged: more of it is valid UTF-8 than is not, it holds bytes that
    no text has, or most of it is beyond ASCII, as in Cyrillic, Greek or Chinese but not in Latin letters.
    """
    for mark, name in MARKS.items():
        if content.startswith(mark):
            return _converted(content[len(mark) :], name)
    if b"\0" in content[:HEAD_BYTES]:
        name = _utf16_without_mark(content[:HEAD_BYTES])
        return _converted(content, name) if name else (None, "binary")
    if content.startswith(codecs.BOM_UTF8):
        content = content[len(codecs.BOM_UTF8) :]
        return content, "UTF-8 with a byte-order mark, which was cut off"
    if content.isascii():
        return content, ""
    valid, invalid = _sequences(content)
    if not invalid:
        return content, ""
    if valid > invalid:
        return content, "UTF-8 with broken characters, kept as they are"
    if any(byte in content for byte in CONTROLS) or 2 * _beyond_ascii(content) > len(content):
        return content, "of no encoding that is known, kept byte by byte"
    return _recoded(content, "cp1252"), "Latin-1 (Windows-1252), converted"


def _converted(content: bytes, name: str) -> tuple[bytes | None, str]:
    return _recoded(content, name), f"{name[:6].upper()}, converted"


def _recoded(content: bytes, name: str) -> bytes:
    """From an encoding to UTF-8, piece by piece; what is broken becomes U+FFFD.

    Each of the five bytes that Windows-1252 does not define becomes the control character of its number.
    """
    errors = "replace"
    if name == "cp1252":
        errors = "pelago-latin-1"
        codecs.register_error(errors, _as_latin_1)
    decoder = codecs.getincrementaldecoder(name)(errors)
    pieces = range(0, len(content), PIECE_BYTES)
    decoded = [decoder.decode(content[at : at + PIECE_BYTES]).encode() for at in pieces]
    return b"".join([*decoded, decoder.decode(b"", final=True).encode()])


def _as_latin_1(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("latin-1"), error.end


def _beyond_ascii(content: bytes) -> int:
    pieces = range(0, len(content), PIECE_BYTES)
    return sum(len(content[at : at + PIECE_BYTES].translate(None, ASCII)) for at in pieces)


def _sequences(content: bytes) -> tuple[int, int]:
    """How many characters beyond ASCII are valid UTF-8, and how many places are not."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    beyond = broken = 0
    for at in range(0, len(content) + 1, PIECE_BYTES):
        text = decoder.decode(content[at : at + PIECE_BYTES], final=at + PIECE_BYTES > len(content))
        ascii_only = len(text.encode("ascii", errors="ignore"))
        valid = len(text.encode("utf-8", errors="ignore").decode())
        beyond, broken = beyond + valid - ascii_only, broken + len(text) - valid
    return beyond, broken


def _utf16_without_mark(head: bytes) -> str:
    """Which UTF-16 a text without a mark is, by the zero bytes of its Latin letters; empty: none."""
    pairs = len(head) // 2
    low, high = head[0 : 2 * pairs : 2].count(0), head[1 : 2 * pairs : 2].count(0)
    if high > 0.5 * pairs and not low:
        return "utf-16-le"
    if low > 0.5 * pairs and not high:
        return "utf-16-be"
    return ""
