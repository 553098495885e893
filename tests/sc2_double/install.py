"""Lay out a folder that pysc2 takes for an installation of StarCraft II."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from sc2_double.maps import FOLDER

# No build of Blizzard's has this number, so recordings of the double give themselves away.
BUILD = 999_999


def install_double(folder: Path) -> Path:
    """Fill `folder`, which SC2PATH can then name, with the double's program and maps; return it."""
    program = folder / "Versions" / f"Base{BUILD}" / "SC2_x64"
    program.parent.mkdir(parents=True)
    # The program starts in whatever environment pysc2 is used in.
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), str(tests.parent)])
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(path)} exec {shlex.quote(sys.executable)} -m sc2_double "$@"\n',
        encoding="utf-8",
    )
    program.chmod(0o755)
    maps = folder / "Maps" / "SMAC_Maps"
    maps.mkdir(parents=True)
    for source in FOLDER.glob("*.json"):
        shutil.copy(source, maps / f"{source.stem}.SC2Map")
    return folder
