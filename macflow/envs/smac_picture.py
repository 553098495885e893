"""Draw a battle from above, without the game's graphics, pygame or a display."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from macflow.envs.base import Frame

Colour = tuple[int, int, int]

_SIZE = 320  # longest side of a picture, in pixels
_GROUND, _WALL, _TEXT = (244, 240, 230), (150, 140, 125), (30, 30, 30)
# Full health, and the pale rest of the disc.
_ALLIES: tuple[Colour, Colour] = ((45, 100, 200), (190, 208, 240))
_ENEMIES: tuple[Colour, Colour] = ((200, 60, 50), (242, 200, 195))


def draw_battle(battle: Any) -> Frame:
    """Draw the living of an episode as discs filled by their share of health: blue allies, red enemies.

    Args:
        battle: the package's environment, after a reset.
    """
    width, height = int(battle.map_x), int(battle.map_y)
    scale = _SIZE / max(width, height)
    # (x, y) of the map, y upwards; a picture's rows run down.
    ground = np.where(battle.pathing_grid.T[::-1, :, None], _GROUND, _WALL).astype(np.uint8)
    size = (round(width * scale), round(height * scale))
    picture = Image.fromarray(ground).resize(size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for units, colours in ((battle.enemies, _ENEMIES), (battle.agents, _ALLIES)):
        for unit in units.values():
            if unit.health > 0:
                _disc(draw, unit, scale, height, colours)
    alive = [sum(u.health > 0 for u in units.values()) for units in (battle.agents, battle.enemies)]
    draw.text((6, 4), f"step {battle._episode_steps}: {alive[0]} against {alive[1]}", fill=_TEXT)
    return np.asarray(picture)


def _disc(
    draw: ImageDraw.ImageDraw, unit: Any, scale: float, height: int, colours: tuple[Colour, Colour]
) -> None:
    x, y, r = unit.pos.x * scale, (height - unit.pos.y) * scale, max(unit.radius * scale, 3.0)
    box = (x - r, y - r, x + r, y + r)
    share = unit.health / unit.health_max
    draw.ellipse(box, fill=colours[1], outline=colours[0])
    draw.pieslice(box, -90, -90 + 360 * share, fill=colours[0])
