"""What has to be installed before StarCraft II can be played, and what is."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

# Distributions by the module that each brings.
_NEEDED = {
    "smacv2": "smacv2",
    "pysc2": "pysc2",
    "s2clientprotocol": "s2clientprotocol",
    "absl": "absl-py",
    "websocket": "websocket-client",
    "portpicker": "portpicker",
    "google.protobuf": "protobuf",
}
_REPOSITORY = "https://github.com/oxwhirl/smacv2"
# Its dependencies are named here because its own pins (protobuf below 3.21) fit nothing else.
_INSTALL = (
    "pip install absl-py websocket-client portpicker protobuf && "
    f"pip install --no-deps pysc2 s2clientprotocol git+{_REPOSITORY}"
)
_GAME = "https://github.com/Blizzard/s2client-proto#linux-packages"
_DOCS = "docs/starcraft.md has the steps"


def game_folder() -> Path:
    """Return where StarCraft II is looked for: SC2PATH, or ~/StarCraftII."""
    return Path(os.environ.get("SC2PATH") or "~/StarCraftII").expanduser()


def game_build(folder: Path) -> int | None:
    """Return the newest build among `Versions/BaseNNNNN`, the one that pysc2 starts; None where none is."""
    names = (path.name.removeprefix("Base") for path in (folder / "Versions").glob("Base*"))
    return max((int(name) for name in names if name.isdecimal()), default=None)


def needs_game(map_file: str) -> Callable[[], str | None]:
    """Return a function that says what is missing to play a map, or None; it imports nothing."""

    def missing() -> str | None:
        absent = [name for module, name in _NEEDED.items() if not _is_there(module)]
        if absent:
            return f"{', '.join(absent)}: not installed; {_INSTALL} ({_DOCS})"
        folder = game_folder()
        if game_build(folder) is None:
            given = "as SC2PATH says" if os.environ.get("SC2PATH") else "SC2PATH is not set"
            return (
                f"StarCraft II is not there: no build in {folder / 'Versions'} ({given}); unpack one of "
                f"Blizzard's Linux packages, {_GAME}, and set SC2PATH to the folder that holds `Versions` "
                f"({_DOCS})"
            )
        path = folder / "Maps" / "SMAC_Maps" / f"{map_file}.SC2Map"
        if not path.is_file():
            return (
                f"the map {path} is not there; copy SMAC_Maps from {_REPOSITORY} "
                f"(smacv2/env/starcraft2/maps) into {folder / 'Maps'} ({_DOCS})"
            )
        return None

    return missing


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def installed_version() -> str:
    """Name the packages' versions and the game's build: what decides how a battle goes."""
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("smacv2", "pysc2"))
    return f"{packages}, StarCraft II build {game_build(game_folder())}"
