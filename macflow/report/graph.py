"""Lay the lineage out as a drawing: artifacts in a line, arrows to what was made from them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from macflow.report.lineage import Artifact, InputState, Lineage


@dataclass(frozen=True)
class Node:
    """A box; x and y are its upper left corner."""

    artifact: Artifact
    x: float
    y: float


@dataclass(frozen=True)
class Edge:
    """An arrow from an input to what was made from it, as an SVG path."""

    source: str
    target: str
    path: str
    state: InputState


@dataclass(frozen=True)
class Graph:
    """A drawing in SVG user units."""

    width: float
    height: float
    node_width: float
    node_height: float
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def lay_out(lineage: Lineage, vertical: bool) -> Graph:
    """Place the artifacts in a row, or in a column where `vertical`.

    Inputs of the artifact next in line get a straight arrow; others an arc. Arcs from the first
    artifact that has any run on one side, all other arcs on the other, nested by their length.
    """
    node_width, node_height = (176.0, 50.0) if vertical else (152.0, 54.0)
    # `along` is the direction of the line, `across` the other.
    length, breadth = (node_height, node_width) if vertical else (node_width, node_height)
    pitch = length + (30.0 if vertical else 36.0)
    place = {artifact.path: index for index, artifact in enumerate(lineage.artifacts)}
    links = [
        (place[entry.path], place[artifact.path], entry.path, artifact.path, entry.state)
        for artifact in lineage.artifacts
        for entry in artifact.inputs
    ]
    arcs = sorted((link for link in links if link[1] - link[0] > 1), key=lambda link: link[1] - link[0])
    first = min((start for start, *_ in arcs), default=0)
    leaving: dict[int, list[int]] = defaultdict(list)
    arriving: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for start, end, *_ in arcs:
        leaving[start].append(end)
        arriving[end, start == first].append(start)

    def bulge(start: int, end: int) -> float:
        return (10.0 if vertical else 14.0) * (end - start) + 26.0

    # A cubic curve reaches three quarters of the way to its control points.
    before = 0.75 * max((bulge(s, e) for s, e, *_ in arcs if s == first), default=0.0) + 4
    after = 0.75 * max((bulge(s, e) for s, e, *_ in arcs if s != first), default=0.0) + 4

    def point(along: float, across: float) -> str:
        return f"{across:g},{along:g}" if vertical else f"{along:g},{across:g}"

    edges = []
    for start, end, source, target, state in links:
        if end - start == 1:
            middle = before + breadth / 2
            path = f"M{point(start * pitch + length, middle)} L{point(end * pitch - 2, middle)}"
        else:
            near = start == first
            # Of arcs that leave one box the longest leaves first; of those that arrive it arrives last.
            out, into = leaving[start], arriving[end, near]
            # Leaving arcs keep to the first four fifths, clear of the straight arrow's end.
            begin = start * pitch + length * (1 - 0.8 * (out.index(end) + 1) / (len(out) + 1))
            finish = end * pitch + length * (into.index(start) + 1) / (len(into) + 1)
            side = before if near else before + breadth
            control = side - bulge(start, end) if near else side + bulge(start, end)
            tip = side - 2 if near else side + 2
            handles = f"{point(begin, control)} {point(finish, control)}"
            path = f"M{point(begin, side)} C{handles} {point(finish, tip)}"
        edges.append(Edge(source, target, path, state))
    nodes = tuple(
        Node(artifact, before, index * pitch) if vertical else Node(artifact, index * pitch, before)
        for index, artifact in enumerate(lineage.artifacts)
    )
    whole, high = (len(nodes) - 1) * pitch + length, before + breadth + after
    width, height = (high, whole) if vertical else (whole, high)
    return Graph(width, height, node_width, node_height, nodes, tuple(edges))
