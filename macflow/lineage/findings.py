"""What an audit finds: differences between two records, or between a record and the bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

What = Literal[
    "changed",  # bytes are not those recorded
    "missing",  # recorded, and not there
    "swapped",  # bytes or hash of another artifact
    "forged",  # a manifest or run card contradicts what it tells of
    "edited",  # dvc.lock differs from the committed one, and from the facts
    "uncommitted",  # what the record says is true, but no commit holds it
    "dirty",  # made by code or parameters that no commit holds
    "contradicts",  # two records disagree
]


@dataclass(frozen=True)
class Difference:
    """One thing that is not as a record says."""

    # The artifact, file, or `dvc.lock: STAGE`.
    node: str
    what: What
    # The file inside it, the parameter, the field.
    where: str
    expected: str
    found: str
    # Who says what was expected.
    record: str

    def __str__(self) -> str:
        place = f" {self.where}" if self.where else ""
        return (
            f"{self.node}: {self.what}{place}\n    expected {self.expected} ({self.record})\n"
            f"    found    {self.found}"
        )


@dataclass
class Findings:
    """What was looked at, what differs, and what could not be looked at."""

    differences: list[Difference] = field(default_factory=list)
    # Said to the auditor; nothing is wrong.
    notes: list[str] = field(default_factory=list)
    # Recorded contents that lie nowhere here.
    unchecked: list[str] = field(default_factory=list)
    files: int = 0
    size: int = 0

    def differ(self, node: str, what: What, where: str, expected: object, found: object, record: str) -> None:
        """Add a difference, once."""
        one = Difference(node, what, where, str(expected), str(found), record)
        if one not in self.differences:
            self.differences.append(one)

    def note(self, texts: Iterable[str]) -> None:
        self.notes += [text for text in texts if text not in self.notes]
