"""Run cards: under what versions, when and from which commit an output was first made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from macflow.lineage.git import Repository
from macflow.lineage.lock import LockedStage

KEPT_CARDS = "metrics/made"
LATEST_CARDS = "metrics/run_cards"

Card = Mapping[str, Any]


class RunCards:
    """Every run card of a project: those in the working tree, and those that any commit holds."""

    def __init__(self, root: Path, git: Repository) -> None:
        """Look into a project; git is asked only for what the working tree does not have."""
        self._git = git
        folders = (root / KEPT_CARDS, root / LATEST_CARDS)
        self._here = _readable(p.read_bytes() for folder in folders for p in sorted(folder.glob("*.json")))
        self._committed: list[Card] | None = None

    def of(self, stage: LockedStage) -> Card | None:
        """Return the card of the run that first made what the lock says the stage wrote."""
        wanted = {(out.path, out.md5) for out in stage.outs}

        def among(cards: list[Card]) -> Card | None:
            mine = (card for card in cards if card.get("stage") == stage.name)
            return next((card for card in mine if _output(card) in wanted), None)

        return among(self._here) or among(self.committed())

    def with_sha256(self, prefix: str) -> list[Card]:
        """Return the cards of outputs whose SHA-256 begins with `prefix`."""
        return [
            card
            for card in [*self._here, *self.committed()]
            if str(card.get("output", {}).get("sha256", "")).startswith(prefix)
        ]

    def committed(self) -> list[Card]:
        """Return the cards that any commit holds."""
        if self._committed is None:
            self._committed = _readable(self._git.versions_of(KEPT_CARDS)) if self._git.present else []
        return self._committed


def _readable(contents: Iterable[bytes]) -> list[Card]:
    cards: list[Card] = []
    for content in contents:
        try:
            card = json.loads(content)
        except ValueError:  # `verify` compares it with the committed one, and says so
            continue
        if isinstance(card, dict) and isinstance(card.get("output"), dict):
            cards.append(card)
    return cards


def _output(card: Card) -> tuple[str, str]:
    return str(card["output"].get("path", "")), str(card["output"].get("md5", ""))
