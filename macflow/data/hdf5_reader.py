"""Read the episodes of a Minari HDF5 file quickly, whatever their length.

Opening HDF5 objects is what takes the time where episodes are short (some eight objects for 25
steps), so this goes through h5py's low-level interface, and through several processes where there
are very many episodes: within one process h5py opens objects under one lock.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5p, h5s, h5t
from numpy.typing import NDArray

from macflow.data.rows import UNKNOWN_SEED, EpisodeRows
from macflow.types import DataError, MultiAgentSpec

# Problems of structure that are collected before reading gives up.
MAX_PROBLEMS = 20
# An episode takes about 0.5 ms of processor time; starting a process takes about 0.5 s.
EPISODES_WORTH_A_PROCESS = 4000
# Rows that a reader collects before handing them on: bounds its memory.
CHUNK_ROWS = 1 << 15
METADATA_CACHE_BYTES = 1 << 20
H5_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError)


class StructureError(DataError):
    """Episodes do not have the documented arrays; `problems` lists (episode, message) pairs."""

    def __init__(self, path: Path, problems: Sequence[tuple[int, str]]) -> None:
        self.problems = list(problems)
        shown = "; ".join(f"episode {episode}: {message}" for episode, message in self.problems[:5])
        more = f" (and {len(self.problems) - 5} more)" if len(self.problems) > 5 else ""
        super().__init__(f"{path}: {shown}{more}")


@dataclass(frozen=True)
class _Field:
    """One array of every episode: where it is, what it becomes, what shape and kind it must have."""

    source: bytes
    target: str
    extra_rows: int  # 1: has L + 1 rows
    shape: tuple[int, ...]  # of one row
    dtype: str
    kinds: frozenset[int]  # HDF5 type classes that convert to dtype without harm
    in_infos: bool = False

    @cached_property
    def memory_type(self) -> h5t.TypeID:
        """Return `dtype` in HDF5's terms, made once: reading would make it anew for every array."""
        return h5t.py_create(np.dtype(self.dtype))


_FLOATS = frozenset({h5t.FLOAT, h5t.INTEGER})
_INTEGERS = frozenset({h5t.INTEGER})
# NumPy's bool is an enumeration in HDF5.
_BOOLS = frozenset({h5t.ENUM})
_KIND_NAMES = {
    _FLOATS: "numbers",
    _INTEGERS: "integers",
    _BOOLS: "booleans",
    _BOOLS | _INTEGERS: "booleans or integers",
}


def read_rows(path: Path, spec: MultiAgentSpec, total: int) -> EpisodeRows:
    """Read the first `total` episodes of a Minari HDF5 file in the layout of `minari_store`.

    Raises:
        StructureError: if episodes lack arrays or these have other shapes or types.
        DataError: if the file cannot be read at all.
    """
    layout = _layout_of(path, spec, total)
    chunks = (
        _read_in_processes(path, total, layout)
        if total >= 2 * EPISODES_WORTH_A_PROCESS and (os.cpu_count() or 1) > 1
        else list(_read_chunks(path, 0, total, layout))
    )
    problems = [problem for chunk in chunks for problem in chunk.problems]
    if problems:
        raise StructureError(path, problems[:MAX_PROBLEMS])
    return _assemble(chunks, spec, layout)


def _layout_of(path: Path, spec: MultiAgentSpec, total: int) -> list[_Field]:
    """List the arrays to read; which of the optional ones there are, the first episode tells."""
    infos: set[str] = set()
    with _open(path) as file:
        if len(file) < total:
            raise DataError(f"{path}: metadata promises {total} episodes, the file has {len(file)}")
        if total > 0 and "infos" in file["episode_0"]:
            infos = set(file["episode_0/infos"])
    n, size = spec.n_agents, spec.action_size
    fields = [
        _Field(b"terminations", "terminated", 0, (), "bool", _BOOLS),
        _Field(b"truncations", "truncated", 0, (), "bool", _BOOLS),
        _Field(b"observations", "obs", 1, (n, spec.obs_size), "float32", _FLOATS),
        _Field(b"actions", "actions", 0, (n,), "int64", _INTEGERS)
        if spec.discrete
        else _Field(b"actions", "actions", 0, (n, size), "float32", _FLOATS),
        _Field(b"agent_rewards", "rewards", 1, (n,), "float32", _FLOATS, in_infos=True)
        if "agent_rewards" in infos
        else _Field(b"rewards", "team_rewards", 0, (), "float32", _FLOATS),
    ]
    if "state" in infos:
        fields.append(_Field(b"state", "state", 1, (spec.state_size,), "float32", _FLOATS, in_infos=True))
    elif spec.state_size != n * spec.obs_size:
        raise DataError(f"{path}: `infos/state` is missing, but the specification says {spec.state_size}")
    if spec.discrete and "legals" in infos:
        fields.append(
            _Field(b"legals", "legal_actions", 1, (n, size), "int8", _BOOLS | _INTEGERS, in_infos=True)
        )
    if "step" in infos:
        fields.append(_Field(b"step", "step", 1, (), "int64", _INTEGERS, in_infos=True))
    return fields


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    # For very many small objects, each read once, HDF5's caches only take time and memory
    # (310 MB instead of 54 MB after 8000 episodes).
    cache = access.get_mdc_config()
    cache.set_initial_size = True
    cache.initial_size = cache.min_size = cache.max_size = METADATA_CACHE_BYTES
    access.set_mdc_config(cache)
    access.set_sieve_buf_size(0)
    try:
        with h5py.File(h5f.open(os.fsencode(path), h5f.ACC_RDONLY, fapl=access)) as file:
            yield file
    except H5_ERRORS as error:
        raise DataError(
            f"{path}: not a readable HDF5 file (truncated or damaged?): {_plain(error)}"
        ) from None


def _plain(error: BaseException) -> str:
    return str(error.args[0]) if error.args else type(error).__name__


@dataclass
class _Chunk:
    """Consecutive episodes as read, in canonical rows; or what is wrong with them."""

    lengths: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)


def _read_chunks(path: Path, first: int, last: int, layout: Sequence[_Field]) -> Iterator[_Chunk]:
    """Read episodes [first, last) through HDF5's low-level interface, some CHUNK_ROWS rows at a time."""
    chunk, rows, problems = _Chunk(), 0, 0
    pieces: list[list[NDArray[Any]]] = [[] for _ in layout]
    with _open(path) as file:
        for index in range(first, last):
            try:
                arrays, recorded_id, seed = _read_episode(file.id, index, layout)
            except DataError as error:
                chunk.problems.append((index, str(error)))
            except H5_ERRORS as error:
                chunk.problems.append((index, f"cannot be read: {_plain(error)}"))
            else:
                for piece, array in zip(pieces, arrays, strict=True):
                    piece.append(array)
                length = len(arrays[0]) - 1
                chunk.lengths.append(length)
                chunk.ids.append(recorded_id)
                chunk.seeds.append(seed)
                rows += length + 1
            if problems + len(chunk.problems) >= MAX_PROBLEMS:
                break
            if rows >= CHUNK_ROWS:
                yield _joined(chunk, pieces, layout)
                problems += len(chunk.problems)
                chunk, rows = _Chunk(), 0
                pieces = [[] for _ in layout]
    yield _joined(chunk, pieces, layout)


def _joined(chunk: _Chunk, pieces: Sequence[list[NDArray[Any]]], layout: Sequence[_Field]) -> _Chunk:
    chunk.arrays = {
        part.target: np.concatenate(piece) if piece else np.empty((0, *part.shape), part.dtype)
        for part, piece in zip(layout, pieces, strict=True)
    }
    return chunk


def _read_episode(
    file: h5py.h5f.FileID, index: int, layout: Sequence[_Field]
) -> tuple[list[NDArray[Any]], int, int]:
    """Return one array of L + 1 rows per field, the recorded number of the episode, and its seed."""
    group = h5g.open(file, b"episode_%d" % index)
    infos = None
    arrays: list[NDArray[Any]] = []
    length = -1
    for part in layout:
        if part.in_infos and infos is None:
            infos = h5g.open(group, b"infos")
        try:
            dataset = h5d.open(infos if part.in_infos else group, part.source)
        except KeyError:
            raise DataError(f"array {_where(part)} is missing") from None
        shape = dataset.shape
        if length < 0 and len(shape) == 1:  # the first field has one value per transition
            length = shape[0]
        if shape != (length + part.extra_rows, *part.shape):
            steps = "steps + 1" if part.extra_rows else "steps"
            raise DataError(
                f"array {_where(part)} must have shape ({steps}, ...) = "
                f"{(max(length, 0) + part.extra_rows, *part.shape)}, received {shape}"
            )
        # HDF5 itself refuses what does not convert; only fractions would silently become integers.
        if part.kinds == _INTEGERS:
            _check_kind(part, dataset)
        array = np.empty((length + 1, *part.shape), part.dtype)
        if not part.extra_rows:
            array[length] = 0
        if shape[0]:
            try:
                dataset.read(h5s.ALL, h5s.ALL, array[: shape[0]], part.memory_type)
            except H5_ERRORS:
                _check_kind(part, dataset)
                raise
        arrays.append(array)
    return arrays, _attribute(group, b"id", index), _attribute(group, b"seed", UNKNOWN_SEED)


def _check_kind(part: _Field, dataset: h5d.DatasetID) -> None:
    if dataset.get_type().get_class() not in part.kinds:
        kind = _KIND_NAMES[part.kinds]
        raise DataError(f"array {_where(part)} must hold {kind}, received {dataset.dtype}")


def _where(part: _Field) -> str:
    return f"`{'infos/' if part.in_infos else ''}{part.source.decode()}`"


def _attribute(group: h5g.GroupID, name: bytes, default: int) -> int:
    try:
        attribute = h5a.open(group, name)
    except KeyError:
        return default
    value = np.zeros((), np.int64)
    attribute.read(value, h5t.NATIVE_INT64)
    return int(value)


def _assemble(chunks: list[_Chunk], spec: MultiAgentSpec, layout: Sequence[_Field]) -> EpisodeRows:
    lengths = np.array([length for chunk in chunks for length in chunk.lengths], dtype=np.int64)
    ids = np.array([number for chunk in chunks for number in chunk.ids], dtype=np.int64)
    seeds = np.array([seed for chunk in chunks for seed in chunk.seeds], dtype=np.int64)
    # Popping gives each piece's memory back before the next field is joined.
    joined = {
        part.target: np.concatenate([chunk.arrays.pop(part.target) for chunk in chunks]) for part in layout
    }
    final_rows = np.cumsum(lengths + 1) - 1
    obs = joined["obs"]
    if "rewards" in joined:
        rewards = joined["rewards"]
        rewards[:-1] = rewards[1:]
        rewards[final_rows] = 0
    else:
        rewards = np.repeat(joined["team_rewards"][:, None], spec.n_agents, axis=1)
    legal = None
    if spec.discrete:
        legal = (
            joined["legal_actions"].astype(np.bool_)
            if "legal_actions" in joined
            else np.ones((len(obs), spec.n_agents, spec.action_size), np.bool_)
        )
    return EpisodeRows(
        obs=obs,
        state=joined["state"] if "state" in joined else obs.reshape(len(obs), spec.state_size),
        actions=joined["actions"],
        rewards=rewards,
        terminated=joined["terminated"],
        truncated=joined["truncated"],
        legal_actions=legal,
        lengths=lengths,
        seeds=seeds,
        recorded_ids=ids,
        recorded_steps=joined.get("step"),
    )


def _read_in_processes(path: Path, total: int, layout: Sequence[_Field]) -> list[_Chunk]:
    """Read equal shares of the episodes in one process per core (at most 4), in order."""
    count = min(os.cpu_count() or 1, 4, max(1, total // EPISODES_WORTH_A_PROCESS))
    bounds = [total * i // count for i in range(count + 1)]
    context = multiprocessing.get_context("spawn")
    shares: dict[Connection[Any, Any], list[_Chunk]] = {}
    processes = []
    try:
        for first, last in itertools.pairwise(bounds):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_send_share, args=(sender, path, first, last, list(layout)), daemon=True
            )
            process.start()
            # With the parent's copy closed, a reader that dies is seen as the end of its pipe.
            sender.close()
            processes.append(process)
            shares[receiver] = []
        open_pipes = set(shares)
        while open_pipes:
            for ready in wait(list(open_pipes)):
                assert isinstance(ready, Connection)
                chunk = _receive(ready, layout, path)
                if chunk is None:
                    open_pipes.remove(ready)
                else:
                    shares[ready].append(chunk)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
        for receiver in shares:
            receiver.close()
    return [chunk for share in shares.values() for chunk in share]


def _send_share(
    sender: Connection[Any, Any], path: Path, first: int, last: int, layout: Sequence[_Field]
) -> None:
    """Send chunks as a JSON header and raw arrays; an empty header ends the share."""
    try:
        for chunk in _read_chunks(path, first, last, layout):
            header = {
                "lengths": chunk.lengths,
                "ids": chunk.ids,
                "seeds": chunk.seeds,
                "problems": chunk.problems,
            }
            sender.send_bytes(json.dumps(header).encode())
            for part in layout:
                sender.send_bytes(chunk.arrays[part.target].reshape(-1).view(np.uint8).data)
        sender.send_bytes(b"")
    except BrokenPipeError:
        # The parent is gone; nobody is left to tell.
        return


def _receive(receiver: Connection[Any, Any], layout: Sequence[_Field], path: Path) -> _Chunk | None:
    try:
        raw = receiver.recv_bytes()
        if not raw:
            return None
        header = json.loads(raw)
        rows = sum(header["lengths"]) + len(header["lengths"])
        arrays = {}
        for part in layout:
            array = np.empty((rows, *part.shape), part.dtype)
            receiver.recv_bytes_into(array.reshape(-1).view(np.uint8).data)
            arrays[part.target] = array
    except EOFError:
        raise DataError(f"{path}: a reading process ended before its work was done") from None
    problems = [(int(episode), str(message)) for episode, message in header["problems"]]
    return _Chunk(header["lengths"], header["ids"], header["seeds"], arrays, problems)
