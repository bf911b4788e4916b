"""What a file of text holds: its bytes, decompressed where its name says so, and decoded.

What cannot be read is refused by name; no encoding is guessed.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from sae_placebo.core.errors import SpecError, TextError

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""Endings of compressed files, with their codecs."""
# UTF-32's little-endian mark begins with UTF-16's
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"PAR1\x15": ".parquet"}


def bytes_of(path: Path) -> bytes:
    """Return what a file holds, decompressed if it is named as compressed."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    codec = COMPRESSED.get(path.suffix.lower())
    if codec is None:
        check_magic(path, content)
        return content
    import pyarrow as pa

    try:
        if not content:
            raise EOFError("the file is empty")
        with pa.input_stream(pa.BufferReader(content), compression=codec) as stream:
            return bytes(stream.read())
    except (pa.ArrowException, OSError, EOFError) as error:
        raise TextError(
            f"{str(path)!r} cannot be decompressed as {codec} ({reason(error)}); replace it or leave it "
            "out of text.source"
        ) from None


def check_magic(path: Path, content: bytes) -> None:
    """Refuse a file whose first bytes are those of another kind than its name says."""
    for magic, other in _MAGIC.items():
        if content.startswith(magic) and path.suffix.lower() != other:
            raise TextError(
                f"{str(path)!r} is not what its name says: its first bytes are those of a {other} file; "
                "mend the name or the file, or leave it out of text.source"
            )


def decoded(path: Path, content: bytes, encoding: str = "utf-8") -> str:
    """Return the text that bytes stand for; a byte order mark decides over `encoding`, and is left out."""
    for mark, marked in _MARKS:
        if content.startswith(mark):
            content, encoding = content[len(mark) :], marked
            break
    try:
        text = content.decode(encoding)
    except UnicodeError as error:
        where = ""
        if isinstance(error, UnicodeDecodeError):
            where = f" (byte {error.start}: {error.object[error.start]:#04x})"
        raise TextError(
            f"{str(path)!r} is not {encoding.upper()}{where}; convert it to UTF-8 or leave it out of "
            "text.source"
        ) from None
    if text.count("\0") * 8 > len(text):
        raise TextError(
            f"{str(path)!r} is UTF-16 or UTF-32 without a byte order mark, or no text: "
            f"{text.count(chr(0)):,} of its {len(text):,} characters are null; convert it to UTF-8 or leave "
            "it out of text.source"
        )
    return text


def sound(text: str, where: str) -> str:
    """Return `text`, which must be whole characters: half of a surrogate pair is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError(
            f"{where} holds half of a surrogate pair (U+{ord(text[error.start]):04X}, character "
            f"{error.start + 1} of the text), which is no character; mend it or leave it out of text.source"
        ) from None
    return text


def reason(error: Exception) -> str:
    """Return the first line of what went wrong."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def unreadable(
    path: object, error: OSError, kind: type[SpecError] | type[TextError] = TextError
) -> SpecError | TextError:
    """Return the error that says why a file or folder cannot be read."""
    return kind(
        f"{str(path)!r} cannot be read ({error.strerror}); make it readable or leave it out of text.source"
    )
