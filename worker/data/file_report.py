"""A report on the files below a folder: how many were read, left out and converted, with some of their names."""

from dataclasses import dataclass, field
from typing import Final

NAMES_SHOWN: Final = 3


@dataclass(slots=True)
class FileReport:
    """Counts and names of files, by reason."""

    files: int = 0
    """Files that were read."""
    bytes: int = 0
    """The size of these files on the disk, in bytes."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Names of the files that were not read, by the reason."""
    converted: dict[str, list[str]] = field(default_factory=dict)
    """Names of other files, by the conversion that was necessary or by what is doubtful about the encoding."""

    def leave_out(self, why: str, name: str) -> None:
        """A file or folder is not read."""
        self.left_out.setdefault(why, []).append(name)

    def convert(self, what: str, name: str) -> None:
        """A file was converted to UTF-8, or its encoding is doubtful."""
        self.converted.setdefault(what, []).append(name)

    def lines(self) -> tuple[str, ...]:
        """The report for the user, a line for each reason, in the same order on every machine."""
        out = [counted(why, names, "left out") for why, names in sorted(self.left_out.items())]
        done = [counted(what, names, "encoding") for what, names in sorted(self.converted.items())]
        return (f"read: {self.files:,} files, {self.bytes:,} bytes", *out, *done)


def shown(name: str) -> str:
    """A file's name, printable everywhere: bytes that are not UTF-8 and unprintable characters are escaped."""
    text = name.encode("utf-8", errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(why: str, names: list[str], verb: str) -> str:
    """One line: how many files there are of a kind, with the names of some."""
    few = ", ".join(shown(name) for name in sorted(names)[:NAMES_SHOWN])
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return f"{verb}: {len(names):,} {why} ({few}{more})"
