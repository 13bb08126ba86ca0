"""The bytes of a person's file as text: unpacked, decoded, cleaned, and with what was guessed said in words."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

# Encodings that single-byte and East Asian files of this century are in; detection looks at nothing else.
LIKELY = ["cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r"]
LIKELY += ["cp932", "euc_jp", "gb18030", "big5", "euc_kr"]
MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
BINARY = {
    b"PK\x03\x04": "an Excel workbook or a zip archive: save its sheet as CSV",
    b"PAR1": "a Parquet file: name it .parquet, or read it as parquet",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook: save its sheet as CSV",
    b"%PDF": "a PDF",
    b"SQLite format": "an SQLite database: export the table as CSV",
}
SAMPLE = 200_000  # bytes of lines with non-ASCII characters that detection looks at
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
MOST_CONTROL = 0.02


class SourceError(ValueError):
    """A source that is unknown, missing, damaged, or without the columns that a task names."""


def unpacked(path: Path, where: str) -> bytes:
    """Return a file's bytes, gzip undone whatever the file is called; raises SourceError for a damaged archive."""
    content = path.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{where}: {path.name} is a damaged gzip file ({error})") from None


def decode(content: bytes, encoding: str, where: str, name: str) -> str:
    """Return bytes as text without a byte-order mark; raises SourceError naming the line of the first bad byte."""
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise SourceError(f"{where}: encoding {encoding!r} is unknown; allowed: utf-8, latin-1 and so on") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{where}: {name} is not {encoding}: byte 0x{content[error.start]:02x} in line {line}; set 'encoding' in"
            " the source, or save the file again"
        ) from None
    except UnicodeError as error:
        raise SourceError(f"{where}: {name} is not {encoding} ({error}); set 'encoding' in the source") from None


def detected(content: bytes, where: str, name: str) -> tuple[str, str | None]:
    """Return bytes as text, and the encoding when it is not UTF-8 (None when it is).

    A byte-order mark decides; then UTF-8 where it fits; then UTF-16 without a mark; then the likeliest of ``LIKELY``.
    A UTF-8 file with a few damaged lines stays UTF-8, their bytes replaced. Raises SourceError for what is no text.
    """
    for magic, what in BINARY.items():
        if content.startswith(magic):
            raise SourceError(f"{where}: {name} is {what}")
    text, encoding = _decoded(content, where, name)
    found = len(CONTROL.findall(text[:SAMPLE]))
    if found > max(MOST_CONTROL * len(text[:SAMPLE]), 4) and not text.count("\0") == found:
        raise SourceError(f"{where}: {name} is not a text file (control characters among its first)")
    return text, encoding


def _decoded(content: bytes, where: str, name: str) -> tuple[str, str | None]:
    for mark, encoding in MARKS:
        if content.startswith(mark):
            text = decode(content, encoding, where, name)
            return text, None if encoding == "utf-8-sig" else encoding
    wide = _utf_16(content[:4096])
    if wide:
        return decode(content, wide, where, name), wide
    try:
        return content.decode("utf-8"), None
    except UnicodeDecodeError:
        pass
    lines = [line for line in content.split(b"\n") if not line.isascii()]
    if 2 * sum(_is_utf_8(line) for line in lines) >= len(lines):
        return content.decode("utf-8", "replace"), "utf-8 with damaged bytes replaced"
    encoding = _likeliest(b"\n".join(lines)[:SAMPLE], content)
    return decode(content, encoding, where, name), encoding


def _utf_16(start: bytes) -> str | None:
    """Return the byte order of UTF-16 without a mark: every other byte of Latin text is zero."""
    even, odd = start[::2].count(0), start[1::2].count(0)
    half = len(start) / 2
    if odd > 0.3 * half and even < 0.05 * half:
        return "utf-16-le"
    return "utf-16-be" if even > 0.3 * half and odd < 0.05 * half else None


def _is_utf_8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _likeliest(sample: bytes, content: bytes) -> str:
    """Return the encoding of bytes that are not UTF-8: Western European unless another fits the text better."""
    from charset_normalizer import from_bytes

    matches = {match.encoding: match for match in from_bytes(sample, cp_isolation=list(LIKELY))}
    found = {name: match.chaos for name, match in matches.items()}

    def unlikely(name: str) -> tuple[float, bool, float]:
        # One Cyrillic encoding read as another is as orderly, and all in capitals.
        letters = [letter for letter in (_reads(sample, name) or "") if letter.isalpha() and not letter.isascii()]
        capitals = sum(letter.isupper() for letter in letters) > len(letters) / 2
        return round(found[name], 2), capitals, -matches[name].coherence

    best = min(found, key=unlikely, default="cp1252")
    western = found.get("cp1252", 1.0) <= found.get(best, 1.0)
    if western or _reads(sample, best) == _reads(sample, "cp1252"):
        best = "cp1252"
    # latin-1 gives every byte a meaning, where cp1252 has five holes.
    return best if _reads(content, best) is not None else "latin-1"


def _reads(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return None


def without_strays(text: str) -> str:
    """Return text with halves of surrogate pairs joined, or replaced when alone, and without NUL characters."""
    if "\0" in text:
        text = text.replace("\0", "")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
