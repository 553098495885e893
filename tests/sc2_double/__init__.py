"""A test double of StarCraft II: speaks the game's protocol, fights battles of its own making.

The real pysc2 starts it, connects to it and cannot tell it from the game; unit types, requests, their order
and the maps' triggers are as the real ones where tests depend on them. The combat is made up: what a team
scores here says nothing about StarCraft II. Needs numpy, s2clientprotocol and macflow, and no file of
Blizzard's.
"""
