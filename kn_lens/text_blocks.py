"""Text files of any size, read in blocks of whole lines: bounded memory, and a line number in every complaint."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from kn_lens.errors import DataError
from kn_lens.progress import progress_bar

LONGEST_LINE = 1_000_000
"""Characters; a longer line is refused, so that no file can ask for more memory than a few of them."""

_BLOCK = 1 << 18
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"[\r\n]")


class TextBlocks:
    """The text of a file, UTF-8 or gzipped UTF-8, in blocks of whole lines; iterate once.

    Args:
        path: The file; gzipped if its name ends in ``.gz`` or it begins as such files do.
        what: What the progress bar says.
        progress: Show a bar over the bytes on disk.

    Attributes:
        sha256: Of the file as it lies on disk, once it has been read to the end.
    """

    def __init__(self, path: Path, what: str = "read", *, progress: bool = False) -> None:
        self.path, self.what, self.progress = path, what, progress
        self.sha256 = ""
        self._lines = 0  # whole lines before the block at hand

    def __iter__(self) -> Iterator[str]:
        """Yield blocks, each but the last ending in a line end.

        Raises:
            DataError: No such file, an empty one, a damaged .gz, no UTF-8, a zero byte, or a line longer than
                :data:`LONGEST_LINE`; with file and line.
        """
        try:
            if not self.path.is_file():
                raise DataError(
                    f"{self.path} is a folder; name a file" if self.path.is_dir() else f"no file {self.path}"
                )
            size = self.path.stat().st_size
            with self.path.open("rb") as raw, progress_bar(size, self.what, "B", self.progress) as bar:
                bar.unit_scale = True
                watched = _Watched(raw, bar)
                yield from self._decoded(self._blocks(self._chunks(raw, watched)))
                self.sha256 = watched.digest.hexdigest()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{self.path}: a damaged .gz, readable up to line {self._lines} ({error}); compress or copy it again"
            ) from None
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error.strerror or error})") from None

    def lines(self) -> Iterator[str]:
        """Yield the lines with their ends."""
        for block in self:
            yield from io.StringIO(block, newline="")  # str.splitlines also splits at form feeds and the like

    def _chunks(self, raw: BinaryIO, watched: _Watched) -> Iterator[bytes]:
        start = raw.read(len(_GZIP))
        raw.seek(0)
        zipped = start == _GZIP or self.path.suffix == ".gz"
        if not start:
            raise DataError(f"{self.path}: the file is empty")
        source: Any = gzip.GzipFile(fileobj=watched, mode="rb") if zipped else watched  # type: ignore[arg-type]
        first = True
        while chunk := source.read(_BLOCK):
            yield chunk.removeprefix(_BOM) if first else chunk
            first = False
        if first:
            raise DataError(f"{self.path}: the file holds nothing but a gzip header")

    def _blocks(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Whole lines; what follows the last line end waits for the next chunk."""
        rest = b""
        for chunk in chunks:
            data = rest + chunk
            zero = data.find(b"\0", len(rest))
            if zero >= 0:
                raise DataError(
                    f"{self._at(data, zero)}: a zero byte: this is a binary file, or UTF-16; name a text file in UTF-8"
                )
            self._check_first_line(data)
            cut = data.rfind(b"\n") + 1 or data.rfind(b"\r", 0, len(data) - 1) + 1  # \n may yet follow a last \r
            if cut:
                yield data[:cut]
            rest = data[cut:]
        if rest:
            yield rest

    def _check_first_line(self, data: bytes) -> None:
        """Only the first line can be too long: the others are shorter than a block."""
        if len(data) <= LONGEST_LINE:
            return
        end = _LINE_END.search(data)
        line = data[: end.start()] if end else data
        if len(line.decode("utf-8", errors="ignore")) > LONGEST_LINE:
            raise DataError(
                f"{self.path}:{self._lines + 1}: a line of more than {LONGEST_LINE:,} characters; "
                f"break the lines, e.g. with fold -s -w 1000"
            )

    def _decoded(self, blocks: Iterator[bytes]) -> Iterator[str]:
        for block in blocks:
            try:
                yield block.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{self._at(block, error.start)}: not UTF-8 text; save the file as UTF-8") from None
            self._lines += _count_lines(block)

    def _at(self, data: bytes, position: int) -> str:
        return f"{self.path}:{self._lines + 1 + _count_lines(data[:position])}"


def _count_lines(data: bytes) -> int:
    return data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")


class _Watched:
    """A raw file that hashes what is read from it and moves a progress bar."""

    def __init__(self, raw: BinaryIO, bar: Any) -> None:
        self.raw, self.bar, self.digest = raw, bar, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.raw.read(size)
        self.digest.update(data)
        self.bar.update(len(data))
        return data
