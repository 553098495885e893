"""From the rows of an OG-MARL vault to rows of episodes.

Row t of a vault holds observation, action, reward, end flags, state and masks of step t. What an
episode's last action led to is not stored. So an episode of L rows becomes

    L - 1 transitions   where a time limit or the end of the recording cut it: its last row serves as the
                        final observation, and the transition before is marked as truncated;
    L transitions       where it terminated: its last row is repeated as the final observation, which
                        nothing looks at, as values are not bootstrapped past a terminal.

Both flags at once stay both. Terminals of episodes of exactly `time_limit` rows are read as truncations:
some recorders (OMAR's particle world, StarCraft, the older MuJoCo) know no truncation. A vault of B
streams becomes the episodes of the first, then of the second, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from macflow.data.importers.imported import numbered_agents
from macflow.data.rows import UNKNOWN_SEED, EpisodeRows, IntArray
from macflow.types import (
    ActionArray,
    ActionKind,
    BoolArray,
    ConfigError,
    DataError,
    FloatArray,
    MultiAgentSpec,
)

Infos = Literal["check", "keep", "ignore"]
REQUIRED = ("observations", "actions", "rewards", "terminals")
STATE, LEGALS = "infos.state", "infos.legals"
# Share of the terminal episodes that, all of the greatest length, look like a time limit.
LIMIT_SHARE = 0.05


@dataclass(frozen=True)
class VaultOptions:
    """What a vault does not say of itself."""

    # Rows of an episode whose terminal means that the time is over.
    time_limit: int | None = None
    # None: by the type of the array, integers being discrete.
    action_kind: ActionKind | None = None
    # Needed where actions are discrete and no masks are stored.
    n_actions: int | None = None
    # Of each dimension of continuous actions; None: -1 to 1.
    action_bounds: tuple[float, float] | None = None
    # True sizes of observations padded with zeros; None: all agents have the full size.
    obs_dims: tuple[int, ...] | None = None
    # Stored states and masks: "check" refuses what was never refreshed within any episode (OG-MARL's own
    # recorder does that), "keep" takes it as it is, "ignore" takes the joint observation and legalises all.
    infos: Infos = "check"

    def __post_init__(self) -> None:
        for name in ("time_limit", "n_actions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"`{name}`: must be at least 1 (received {value})")
        if self.action_bounds is not None and not self.action_bounds[0] < self.action_bounds[1]:
            raise ConfigError(f"`action_bounds`: must be low, high (received {self.action_bounds})")
        for name, choices in (("infos", get_args(Infos)), ("action_kind", (*get_args(ActionKind), None))):
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(
                    f"`{name}`: must be one of {', '.join(map(str, choices))} (received {value!r})"
                )


def convert(
    arrays: Mapping[str, NDArray[Any]], options: VaultOptions, where: str
) -> tuple[EpisodeRows, MultiAgentSpec, tuple[str, ...]]:
    """Convert the arrays (B, T, ...) of a vault; the third item are sentences on what was found or assumed.

    Each array is looked up once, and let go before the next.

    Raises:
        DataError: naming `where`, the array and what about it is not as documented.
    """
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise DataError(f"{where}: `{missing[0]}` is missing; there are {', '.join(sorted(arrays))}")
    return _Conversion(arrays, options, where).convert()


@dataclass(frozen=True)
class _Cut:
    """Where the episodes that have a transition are among the B x T rows of a vault, laid end to end."""

    first: IntArray  # (E,) first row
    stored: IntArray  # (E,) rows of the vault
    terminated: BoolArray  # (E,)
    truncated: BoolArray  # (E,) or cut off
    lengths: IntArray  # (E,) transitions that remain

    @cached_property
    def finals(self) -> IntArray:
        """Return each episode's last row in the result, (E,)."""
        finals: IntArray = np.cumsum(self.lengths + 1) - 1
        return finals

    @cached_property
    def source_rows(self) -> IntArray:
        """Return for each row of the result the row of the vault that it comes from, (R,)."""
        counts = self.lengths + 1
        step = np.arange(int(counts.sum())) - np.repeat(self.finals - self.lengths, counts)
        rows: IntArray = np.repeat(self.first, counts) + np.minimum(step, np.repeat(self.stored - 1, counts))
        return rows


@dataclass
class _Conversion:
    """One vault on its way to rows."""

    arrays: Mapping[str, NDArray[Any]]
    options: VaultOptions
    where: str
    notes: list[str] = field(default_factory=list)

    def convert(self) -> tuple[EpisodeRows, MultiAgentSpec, tuple[str, ...]]:
        self.cut = self._episodes()
        finals = self.cut.finals
        obs = self._rows(self._numbers("observations", 4))
        self.n = obs.shape[1]
        rewards = self._without_finals(self._rows(self._numbers("rewards", 3)))
        actions = self._without_finals(self._actions())
        discrete = actions.ndim == 2
        legal = self._legal_actions() if discrete else None
        if not discrete and LEGALS in self.arrays:
            self.notes.append(f"`{LEGALS}` is left out, as actions are continuous")
        size = actions.shape[2] if legal is None else legal.shape[2]
        low, high = (-1.0, 1.0) if discrete else self.options.action_bounds or (-1.0, 1.0)
        state = self._state(obs)
        spec = MultiAgentSpec(
            agent_ids=numbered_agents(self.n),
            obs_dims=self._obs_dims(obs),
            state_size=state.shape[1],
            action_kind="discrete" if discrete else "continuous",
            action_size=size,
            action_low=(float(low),) * size,
            action_high=(float(high),) * size,
        )
        terminated, truncated = np.zeros(len(obs), np.bool_), np.zeros(len(obs), np.bool_)
        terminated[finals - 1], truncated[finals - 1] = self.cut.terminated, self.cut.truncated
        rows = EpisodeRows(
            obs=obs,
            state=state,
            actions=actions,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            legal_actions=legal,
            lengths=self.cut.lengths,
            seeds=np.full(len(finals), UNKNOWN_SEED, np.int64),
        )
        return rows, spec, tuple(self.notes)

    def _fault(self, message: str) -> DataError:
        return DataError(f"{self.where}: {message}")

    # --- episodes

    def _episodes(self) -> _Cut:
        """Find the episodes and how each ended."""
        time_limit = self.options.time_limit
        terminals = self._flags("terminals")
        self.shape = terminals.shape
        if "truncations" in self.arrays:
            truncations = self._flags("truncations")
        else:
            truncations = np.zeros_like(terminals)
            self.notes.append("no `truncations` are stored: time limits, if any, are among the terminals")
        if truncations.shape != self.shape:
            raise self._fault(
                f"`truncations` must be {self.shape} as `terminals`, received {truncations.shape}"
            )
        ended = terminals | truncations
        ended[:, -1:] = True
        last = np.flatnonzero(ended)
        first = np.concatenate([[0], last[:-1] + 1])
        stored = last - first + 1
        terminated, truncated = terminals.reshape(-1)[last], truncations.reshape(-1)[last]
        cut_off = ~terminated & ~truncated
        if time_limit is None:
            self._hint(terminated & ~truncated, stored)
        elif stored.max() > time_limit:
            raise self._fault(
                f"`time_limit` is {time_limit}, but {int((stored > time_limit).sum())} episodes have more "
                f"rows; the longest has {int(stored.max())}"
            )
        else:
            limited = terminated & (stored == time_limit)
            terminated, truncated = terminated & ~limited, truncated | limited
            self.notes.append(f"{int(limited.sum())} terminals at {time_limit} rows are read as time limits")
        lengths = np.where(terminated, stored, stored - 1)
        kept = lengths > 0
        for which, what in (
            (truncated & ~terminated, "ended by a time limit: the last row of each is its final observation"),
            (cut_off, "cut off where a recording ends, taken as truncated likewise"),
            (~kept, "of a single row without a next observation, left out"),
        ):
            if which.any():
                self.notes.append(f"{int(which.sum())} episodes {what}")
        if not kept.any():
            raise self._fault("no episode has a transition whose next observation is stored")
        return _Cut(first[kept], stored[kept], terminated[kept], (truncated | cut_off)[kept], lengths[kept])

    def _flags(self, name: str) -> BoolArray:
        """Return end flags of the team, (B, T), from those of the agents, bool or numbers."""
        array = self.arrays[name]
        if array.ndim not in (2, 3) or array.dtype.kind not in "biuf" or 0 in array.shape:
            raise self._fault(
                f"`{name}` must hold flags (batch, rows, agents), received {array.dtype} {array.shape}"
            )
        flags: BoolArray = np.asarray(array != 0)
        # NaN is no flag either, and equal to nothing.
        odd = flags & (array != 1)
        if odd.any():
            raise self._fault(f"`{name}` must hold 0 and 1, received {array[odd][0]}")
        if flags.ndim == 2:
            return flags
        team: BoolArray = np.asarray(flags.all(axis=2))
        differ = np.argwhere(flags.any(axis=2) != team)
        if len(differ):
            stream, row = differ[0]
            raise self._fault(
                f"`{name}` must be the same for all agents, received {array[stream, row].tolist()} in row "
                f"{row} of stream {stream}; {len(differ)} rows differ"
            )
        return team

    def _hint(self, terminated: BoolArray, stored: IntArray) -> None:
        """Point out terminals that are probably time limits."""
        longest = int(stored.max())
        count = int((terminated & (stored == longest)).sum())
        if count >= max(2, LIMIT_SHARE * terminated.sum()):
            self.notes.append(
                f"{count} of {int(terminated.sum())} terminal episodes have the greatest length, {longest} "
                f"rows; if that is a time limit, import with a time limit of {longest}"
            )

    # --- arrays

    def _numbers(self, name: str, *dims: int) -> NDArray[Any]:
        """Return an array (B, T, ...) that holds numbers, and has one of the numbers of dimensions."""
        array = self.arrays[name]
        if array.ndim not in dims or array.dtype.kind not in "biuf" or 0 in array.shape:
            wanted = " or ".join(map(str, dims))
            raise self._fault(
                f"`{name}` must hold numbers in {wanted} dimensions, received {array.dtype} {array.shape}"
            )
        if array.shape[:2] != self.shape:
            raise self._fault(f"`{name}` must have {self.shape} rows as `terminals`, received {array.shape}")
        # All but the state are per agent; observations say how many there are.
        if name not in ("observations", STATE) and array.shape[2] != self.n:
            raise self._fault(f"`{name}` must have {self.n} agents as `observations`, received {array.shape}")
        return array

    def _rows(self, array: NDArray[Any], dtype: type[Any] = np.float32) -> NDArray[Any]:
        """Return the episodes' rows of an array (B, T, ...) as (R, ...) of `dtype`, a view if possible."""
        rows, source = array.reshape(-1, *array.shape[2:]), self.cut.source_rows
        if len(source) != len(rows) or (np.diff(source) != 1).any():
            rows = rows[source]
        # Doubles beyond single precision become infinite, which validation reports.
        with np.errstate(over="ignore"):
            return rows.astype(dtype, copy=False)

    def _without_finals(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return a copy of (R, ...) with zeros in the episodes' last rows, which have no transition."""
        copy = rows.copy()
        copy[self.cut.finals] = 0
        return copy

    def _actions(self) -> ActionArray:
        """Return actions, (R, N) int64 where discrete, else (R, N, A) float32."""
        actions, kind = self._numbers("actions", 3, 4), self.options.action_kind
        whole = actions.dtype.kind in "iu"
        if kind is None and not whole and actions.ndim == 3:
            raise self._fault(
                f"`actions` are {actions.dtype} {actions.shape}, which may be numbers of actions or one "
                "dimension: `action_kind` must say whether they are discrete or continuous"
            )
        if kind == "continuous" or (kind is None and not whole):
            return self._rows(actions if actions.ndim == 4 else actions[..., None])
        # RWARE's have a last axis of 1.
        if actions.ndim == 4 and actions.shape[3] == 1:
            actions = actions[..., 0]
        if actions.ndim == 4:
            raise self._fault(f"discrete `actions` must be (batch, rows, agents), received {actions.shape}")
        if not whole and not (np.isfinite(actions) & (actions == np.floor(actions))).all():
            raise self._fault("discrete `actions` must be whole numbers")
        return self._rows(actions, np.int64)

    def _legal_actions(self) -> BoolArray:
        size = self.options.n_actions
        if LEGALS in self.arrays:
            masks = self._numbers(LEGALS, 4)
            if size not in (None, masks.shape[3]):
                raise self._fault(f"`{LEGALS}` has {masks.shape[3]} actions, `n_actions` is {size}")
            if self.options.infos != "ignore":
                return self._rows(np.asarray(masks != 0), np.bool_)
            size = masks.shape[3]
        if size is None:
            raise self._fault(f"no `{LEGALS}` is stored: `n_actions` must say how many actions there are")
        self.notes.append(f"`{LEGALS}` is not stored or ignored: all {size} actions count as legal")
        return np.ones((len(self.cut.source_rows), self.n, size), np.bool_)

    def _state(self, obs: FloatArray) -> FloatArray:
        """Return the global state, (R, S).

        A state per agent (B, T, N, S') is taken once if all agents have the same one throughout, and
        otherwise laid out in a row, N * S' values.
        """
        if STATE not in self.arrays or self.options.infos == "ignore":
            self.notes.append(f"`{STATE}` is not stored or ignored: all observations in a row are the state")
            return obs.reshape(len(obs), -1)
        state = self._rows(self._numbers(STATE, 3, 4))
        if state.ndim == 3:
            same = bool((state == state[:, :1]).all())
            kept = "the same for all and taken once" if same else "laid out in a row"
            self.notes.append(f"`{STATE}` is stored {state.shape[1]} times per step, {kept}")
            state = np.ascontiguousarray(state[:, 0]) if same else state.reshape(len(state), -1)
        if self.options.infos == "check":
            self._check_refreshed(state, obs)
        return state

    def _check_refreshed(self, state: FloatArray, obs: FloatArray) -> None:
        """Refuse a state that stays the same in every episode in which observations change."""
        moving = self._changes(obs)
        stale = moving & ~self._changes(state)
        if not stale.any():
            return
        told = (
            f"`{STATE}` never changes in {int(stale.sum())} of {int(moving.sum())} episodes though "
            "observations do: the recorder did not refresh `infos`"
        )
        if stale.sum() == moving.sum():
            raise self._fault(
                f"{told}; import with `infos` ignore to have all observations as the state and all actions "
                "legal, or keep to take what is stored"
            )
        self.notes.append(told)

    def _changes(self, array: FloatArray) -> BoolArray:
        """Mark the episodes in which an array (R, ...) changes, (E,)."""
        finals = self.cut.finals
        starts = finals - self.cut.lengths
        changed: BoolArray = (array[starts] != array[finals]).reshape(len(starts), -1).any(axis=1)
        # Few episodes end as they began: only these are looked through.
        for episode in np.flatnonzero(~changed):
            whole = array[starts[episode] : finals[episode] + 1]
            changed[episode] = bool((whole != whole[0]).any())
        return changed

    def _obs_dims(self, obs: FloatArray) -> tuple[int, ...]:
        """Return the true sizes of the observations, which must be zero beyond them."""
        dims, n, size = self.options.obs_dims, int(obs.shape[1]), int(obs.shape[2])
        if dims is None:
            return (size,) * n
        if len(dims) != n or max(dims) != size or min(dims) < 1:
            raise self._fault(
                f"`obs_dims` must be the sizes of {n} agents, the largest {size}, received {dims}"
            )
        for agent, dim in enumerate(dims):
            if obs[:, agent, dim:].any():
                raise self._fault(
                    f"`observations` of agent {agent} must be zero beyond the {dim} features of `obs_dims`"
                )
        return dims
