"""What became of the files below a folder: read, left out and converted, with a few names of each."""

from dataclasses import dataclass, field
from typing import Final

NAMES_SHOWN: Final = 3


@dataclass(slots=True)
class FileReport:
    """Counts and names by reason. ``files`` and ``bytes``: read, as they lie on the disk."""

    files: int = 0
    bytes: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    converted: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, why: str, name: str) -> None:
        """A file or folder is not read."""
        self.left_out.setdefault(why, []).append(name)

    def convert(self, what: str, name: str) -> None:
        """A file was read otherwise than byte by byte, or with doubts."""
        self.converted.setdefault(what, []).append(name)

    def lines(self) -> tuple[str, ...]:
        """The account for its user, a line for each reason, in an order that does not depend on the disk."""
        out = [counted(why, names, "left out") for why, names in sorted(self.left_out.items())]
        done = [counted(what, names, "encoding") for what, names in sorted(self.converted.items())]
        return (f"read: {self.files:,} files, {self.bytes:,} bytes", *out, *done)


def shown(name: str) -> str:
    """A file's name as it can be printed everywhere: escaped where it is no text, or would break a line."""
    text = name.encode("utf-8", errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(why: str, names: list[str], verb: str) -> str:
    """A line that says how many files there are of a kind, and names a few."""
    few = ", ".join(shown(name) for name in sorted(names)[:NAMES_SHOWN])
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return f"{verb}: {len(names):,} {why} ({few}{more})"
