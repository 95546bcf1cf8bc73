"""AgentBoard's text layer of BabyAI on the device: an action is a sentence, and stands for a list of primitive ones.

What it does that one would not expect:

- A path is planned through all that is not seen to be an obstacle: through doors in any state, cells that are not seen,
  and the row of cells behind the agent (when it looks right or down) or an eighth column (down or left).
- A list of primitive actions is given up when the view has not changed, also where the agent has moved.
- What counts is what the last of these has led to: "toggle and go through" a door does not fulfil "open the door".
- After a failure, too, it says that the task is completed, and goes on.
- "pickup" and "go to" number the objects that can be reached, the rest numbers all.

AgentBoard without labels takes a late success back (a reward of minigrid's of at most one half); that is left out. With
them progress is another: subgoals.py.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from agemem_jax.benchmarks.babyai import environment as engine
from agemem_jax.benchmarks.babyai import search
from agemem_jax.benchmarks.babyai import wording as say
from agemem_jax.benchmarks.babyai.levels import EMPTY, FIRST, WALL, Game
from agemem_jax.benchmarks.babyai.wording import AT, PLACES, Shared
from agemem_jax.envs.base import Outcome
from agemem_jax.envs.text import running_sum, says, text_key
from agemem_jax.types import Text

_BOX = 12  # looks from here to engine.CARRIED are boxes
_NONE = -1
# The cell of the board (search.py) of each place in view.
_CELL = (engine.VIEW - PLACES[:, 0]) * search.SIDE + PLACES[:, 1]
_PRIMITIVE = np.array([engine.FORWARD, engine.LEFT, engine.RIGHT])  # by step of a path
# The primitive actions that a verb ends with.
_ENDS = np.full((12, 3), _NONE)
for _verb, _end in {say.TURN_LEFT: [engine.LEFT], say.TURN_RIGHT: [engine.RIGHT], say.MOVE: [engine.FORWARD],
                    say.DROP: [engine.DROP], say.TOGGLE: [engine.TOGGLE], say.PICK_UP: [engine.PICKUP],
                    say.TOGGLE_THROUGH: [engine.TOGGLE, engine.FORWARD]}.items():  # fmt: skip
    _ENDS[_verb, : len(_end)] = _end


@struct.dataclass
class State:
    """What play has made of games."""

    play: engine.State
    view: jax.Array  # [B, 7, 7] int8 the agent's view (environment.see)
    turns: jax.Array  # [B] int32 actions so far, understood or not
    won: jax.Array  # [B] bool


@struct.dataclass
class Turn:
    """What an action has led to."""

    pieces: jax.Array  # [B, P] int32 what is said, by numbers of wording.PIECES
    acts: jax.Array  # [B] bool: primitive actions were taken
    finished: jax.Array  # [B] bool: minigrid called the episode over, won or lost, after the last one
    understood: jax.Array  # [B] bool


@struct.dataclass
class Scene:
    """What is in view, nearest first; K objects at most, all but the agent's own cell."""

    name: jax.Array  # [B, K] int32 the look of the object, or -1
    place: jax.Array  # [B, K] int32 row of PLACES
    number: jax.Array  # [B, K] int32 how many of that name are as near or nearer in the list, itself included
    same: jax.Array  # [B, K, K] bool: the second is of the name of the first, and not behind it in the list
    barrier: jax.Array  # [B] int32 cells to the nearest wall or box straight ahead, 0: none
    is_box: jax.Array  # [B] bool: that is a box
    anything: jax.Array  # [B] bool: a wall or an object is in view
    held: jax.Array  # [B] int32 the look of what is carried, or -1


@struct.dataclass
class Ways:
    """What can be done with the objects of a scene."""

    free: jax.Array  # [B, 2] uint32 cells of the board without obstacles
    face: jax.Array  # [B, K] bool: there is a path to a cell next to it
    enter: jax.Array  # [B, K] bool: there is one into its cell
    count: jax.Array  # [B, K] int32 its number among the objects of that name that can be faced


@dataclass(frozen=True)
class Macros:
    """AgentBoard's BabyAI as an Environment; `shared` is wording.Shared, `game` is levels.Game."""

    seen_tokens: int = 256
    action_tokens: int = 16
    turns: int = 30  # AgentBoard's limit of actions
    objects: int = 20  # K, the most objects in view that are told; the farthest are left out

    def reset(self, shared: Shared, game: Game) -> tuple[State, Text]:
        """Games where play begins, and what AgentBoard says there: not the goal, which is `Level.goal`."""
        play = engine.start(game)
        view = engine.first_view(game, play)
        off = jnp.zeros(len(view), bool)
        seen = say.write(shared.pieces, _observation(self._look(game, play, view), off), self.seen_tokens)
        return State(play, view, jnp.zeros(len(view), jnp.int32), off), seen

    def step(self, shared: Shared, game: Game, state: State, action: Text, on: jax.Array) -> tuple[State, Outcome]:
        """One action a row, of any number of primitive ones."""
        state, turn = self.turn(shared, game, state, action, on)
        return state, Outcome(
            seen=say.write(shared.pieces, turn.pieces, self.seen_tokens),
            progress=state.won.astype(jnp.float32),
            success=state.won,
            terminated=state.won,
            truncated=(state.turns >= self.turns) & ~state.won,
            understood=turn.understood,
        )

    def turn(self, shared: Shared, game: Game, state: State, action: Text, on: jax.Array) -> tuple[State, Turn]:
        """The same, neither written nor judged."""
        play, view = state.play, state.view
        scene = self._look(game, play, view)
        ways = _ways(scene, view, play.direction)
        verb, name, number = say.meaning(shared, text_key(shared.lower, action)).T
        verb = jnp.where(says(shared.check, action), say.CHECK, verb)
        target, can = _target(scene, ways, verb, name, number)
        play, view, finished, success, idle = _play(game, play, view, ways, verb, target, on & can)
        acts = can & ~idle

        seen = _observation(self._look(game, play, view), finished)
        told = jnp.where((verb == say.CHECK)[:, None], _actions(scene, ways), 0)
        refused = _refusal(scene, ways, verb, name, number)
        refused = _fit(jnp.where(idle, AT["no change"], 0)[:, None], refused, idle)
        pieces = _fit(seen, _fit(told, refused, verb == say.CHECK), acts)
        pieces = jnp.where(on[:, None], pieces, 0)
        after = State(play, view, state.turns + on, state.won | (on & success))
        return after, Turn(pieces, on & acts, on & finished, on & (can | (verb == say.CHECK)))

    def render(self, shared: Shared, game: Game, state: State, row: int) -> str:
        """The whole grid as minigrid's pprint_grid prints it, and what the agent carries."""
        del shared
        game, play = (jax.tree.map(lambda x: np.asarray(x)[row], part) for part in (game, state.play))
        looks = np.asarray(engine.look(*jax.tree.map(lambda x: x[None], (game, play))))[0]
        side = len(game.cells)
        fixed = {EMPTY: "  ", WALL: "WG"}
        cells = [fixed[holds] if holds < FIRST else _letters(looks[holds - FIRST]) for holds in play.cells.tolist()]
        cells[play.position[1] * side + play.position[0]] = ">V<^"[play.direction] * 2
        held = f"\ncarrying: {say.NAMES[looks[play.carrying]]}" if play.carrying >= 0 else ""
        return "\n".join("".join(cells[i : i + side]) for i in range(0, side * side, side)) + held

    def _look(self, game: Game, play: engine.State, view: jax.Array) -> Scene:
        shown = view[:, PLACES[:, 0], PLACES[:, 1]].astype(jnp.int32)  # [B, 48]
        there = shown >= engine.FIRST_LOOK
        rank = jnp.where(there, running_sum(there.astype(jnp.float32)).astype(jnp.int32) - 1, self.objects)
        rows = jnp.arange(len(view))[:, None]
        place = jnp.zeros((len(view), self.objects), jnp.int32)
        place = place.at[rows, rank].set(jnp.arange(len(PLACES)), mode="drop")
        real = jnp.arange(self.objects) < there.sum(1, keepdims=True)
        name = jnp.where(real, jnp.take_along_axis(shown, place, 1) - engine.FIRST_LOOK, _NONE)
        same = (name[:, :, None] == name[:, None]) & jnp.tri(self.objects, dtype=bool)
        ahead = view[:, : engine.LAST, engine.MIDDLE][:, ::-1]  # from the nearest cell on
        is_box = (ahead >= engine.FIRST_LOOK + _BOX) & (ahead < engine.FIRST_LOOK + engine.CARRIED)
        stops = is_box | (ahead == engine.SEEN_WALL)
        first = jnp.argmax(stops, 1)
        looks = engine.look(game, play)
        held = jnp.take_along_axis(looks, jnp.maximum(play.carrying, 0)[:, None], 1)[:, 0].astype(jnp.int32)
        return Scene(
            name=name,
            place=place,
            number=same.sum(2),
            same=same,
            barrier=jnp.where(stops.any(1), first + 1, 0),
            is_box=jnp.take_along_axis(is_box, first[:, None], 1)[:, 0],
            anything=(shown >= engine.SEEN_WALL).any(1),
            held=jnp.where(play.carrying >= 0, held, _NONE),
        )


def _letters(look: int) -> str:
    """An object as minigrid prints it: its kind or the door's state, and its colour."""
    name = say.NAMES[look]
    if look < engine.CARRIED:
        return "KAB"[look // 6] + name[0].upper()
    return ("__", "D" + name[0].upper(), "L" + name[0].upper())[(look - engine.CARRIED) % 3]


def _ways(scene: Scene, view: jax.Array, direction: jax.Array) -> Ways:
    stands = (view == engine.SEEN_WALL) | (
        (view >= engine.FIRST_LOOK) & (view < engine.FIRST_LOOK + engine.CARRIED)
    )  # [B, 7, 7]; what is carried is shown in the agent's own cell
    stands = stands.at[:, engine.LAST, engine.MIDDLE].set(False)
    behind = (direction == 0) | (direction == 1)
    aside = (direction == 1) | (direction == 2)
    inner = jnp.pad(~stands[:, ::-1], [(0, 0), (1, 0), (0, 1)], constant_values=True)
    row, column = jnp.arange(search.SIDE)[:, None], jnp.arange(search.SIDE)
    inner &= ((row > 0) | behind[:, None, None]) & ((column < search.SIDE - 1) | aside[:, None, None])
    free = search.board(inner.reshape(len(view), -1))
    cells = search.reached(free)
    near = search.shift(cells, 0) | search.shift(cells, 1) | search.shift(cells, 2) | search.shift(cells, 3)
    at, real = jnp.asarray(_CELL)[scene.place], scene.name >= 0
    face = search.holds(near, at) & real
    return Ways(free, face, search.holds(cells, at) & real, (scene.same & face[:, None]).sum(2))


def _kinds(name: jax.Array) -> tuple[jax.Array, ...]:
    """Whether looks are of what can be carried, and of doors that are open, closed and locked."""
    state = jnp.where(name >= engine.CARRIED, (name - engine.CARRIED) % 3, _NONE)
    return (name >= 0) & (name < engine.CARRIED), state == 0, state == 1, state == 2


def _toggles(scene: Scene) -> jax.Array:
    """Whether the door [B, K] is closed, or locked and the agent has its key."""
    _, _, closed, locked = _kinds(scene.name)
    held = scene.held[:, None]
    return closed | (locked & (held >= 0) & (held < 6) & (held == (scene.name - engine.CARRIED) // 3))


def _ahead(scene: Scene) -> jax.Array:
    """Whether the object is in the cell ahead of the agent, the first of all places."""
    return (scene.name >= 0) & (scene.place == 0)


def _target(scene, ways, verb, name, number) -> tuple[jax.Array, jax.Array]:
    """The row of PLACES [B] that an action is about, and whether [B] it can be taken."""
    verb, number = verb[:, None], number[:, None]
    carried, is_open, _, _ = _kinds(scene.name)
    counted, numbered = ways.count == number, scene.number == number
    fits = jnp.select(
        [verb == say.PICK_UP, verb == say.GO_TO, verb == say.GO_THROUGH, verb == say.TOGGLE_THROUGH],
        [
            ways.face & counted & carried & (scene.held < 0)[:, None],
            ways.face & counted,
            ways.enter & numbered & is_open,
            ways.face & numbered & _toggles(scene),
        ],
        False,
    )
    fits &= scene.name == name[:, None]
    verb = verb[:, 0]
    can = jnp.select(
        [verb == say.MOVE, verb == say.DROP, verb == say.TOGGLE],
        [scene.barrier != 1, _can_drop(scene), (_ahead(scene) & _toggles(scene)).any(1)],
        (verb == say.TURN_LEFT) | (verb == say.TURN_RIGHT) | fits.any(1),
    )
    return jnp.take_along_axis(scene.place, jnp.argmax(fits, 1)[:, None], 1)[:, 0], can


def _can_drop(scene: Scene) -> jax.Array:
    carried = _kinds(scene.name)[0]
    return (scene.held >= 0) & (scene.barrier != 1) & ~(_ahead(scene) & carried).any(1)


def _play(game, play, view, ways, verb, target, on):
    """Takes the primitive actions of the rows `on` until they are done, or the view has not changed.

    Returns:
      the state and view after them, whether minigrid called the episode over, and won, after the last one [B], and
      whether there was nothing to do [B].
    """
    has_path = on & (verb >= say.PICK_UP) & (verb <= say.TOGGLE_THROUGH)
    at = jnp.where(has_path, jnp.asarray(_CELL)[target], _NONE)
    enters = (verb == say.GO_THROUGH)[:, None, None]
    inside = jnp.broadcast_to((search.one(at) & ways.free)[:, None], (len(at), 4, 2))
    goals = search.goal_of(jnp.where(enters, inside, search.facing(at, ways.free)), ways.free, has_path)
    way = search.distances(goals, ways.free, has_path)
    ends = jnp.asarray(_ENDS)[verb]

    def one(fixed, carry):
        game, has_path, goals, way, ends = fixed
        play, view, cell, direction, done, alive, finished, success = carry
        end_of = lambda done: jnp.take_along_axis(ends, done[:, None], 1)[:, 0]  # noqa: E731
        walks = alive & has_path & ~search.at_goal(goals, cell, direction)
        step, next_cell, next_direction = search.next_step(way, cell, direction, last=True)
        action = jnp.where(walks, jnp.asarray(_PRIMITIVE)[step], end_of(done))
        play, verdict = engine.act(game, play, action, alive)
        new = jnp.where(alive[:, None, None], engine.see(game, play), view)
        cell, direction = jnp.where(walks, next_cell, cell), jnp.where(walks, next_direction, direction)
        done = done + (alive & ~walks)
        more = (has_path & ~search.at_goal(goals, cell, direction)) | (end_of(done) >= 0)
        finished = jnp.where(alive, verdict.terminated, finished)
        success = jnp.where(alive, verdict.success, success)
        return play, new, cell, direction, done, alive & more & (new != view).any((1, 2)), finished, success

    rows = len(at)
    begin = jnp.full(rows, search.START), jnp.zeros(rows, jnp.int32)
    idle = on & ~((has_path & ~search.at_goal(goals, *begin)) | (ends[:, 0] >= 0))
    never = jnp.zeros(rows, bool)
    carry = play, view, *begin, jnp.zeros(rows, jnp.int32), on & ~idle, never, never
    fixed = game, has_path, goals, way, ends
    play, view, *_, finished, success = search.until_few(one, fixed, carry, alive=5)
    return play, view, finished, success, idle


def _fit(one: jax.Array, other: jax.Array, choice: jax.Array) -> jax.Array:
    """Pieces `one` where `choice` [B], else `other`, in the width of the wider."""
    width = max(one.shape[1], other.shape[1])
    wide = lambda x: jnp.pad(x, [(0, 0), (0, width - x.shape[1])])  # noqa: E731
    return jnp.where(choice[:, None], wide(one), wide(other))


def _row(*columns: jax.Array) -> jax.Array:
    """Pieces [B] or [B, n] side by side."""
    return jnp.concatenate([x[:, None] if x.ndim == 1 else x for x in columns], 1)


def _interleave(*columns: jax.Array) -> jax.Array:
    """Pieces [B, n] as first of all, first of all, ...: [B, n * columns]."""
    return jnp.stack(columns, 2).reshape(len(columns[0]), -1)


def _observation(scene: Scene, finished: jax.Array) -> jax.Array:
    """Pieces of what is seen."""
    real = scene.name >= 0
    put = lambda group, index, on: jnp.where(on, AT[group] + index, 0)  # noqa: E731
    objects = _interleave(
        put("there is", scene.name, real), put("number", scene.number, real), put("place", scene.place, real)
    )
    facing = scene.barrier - 1 + engine.LAST * scene.is_box
    hands = lambda end: jnp.where(scene.held >= 0, AT[f"carrying{end}"] + scene.held, AT[f"empty-handed{end}"])  # noqa: E731
    return _row(
        jnp.where(scene.anything, AT["sees"], AT["blind"]),
        objects,
        jnp.where(scene.anything, AT["room"], 0),
        put("facing", facing, scene.barrier > 0),
        jnp.where(finished, *(hands(end) for end in (", completed", ""))),
    )


def _actions(scene: Scene, ways: Ways) -> jax.Array:
    """Pieces of the list of actions."""
    carried, is_open, _, _ = _kinds(scene.name)
    toggles = _toggles(scene)

    def listed(group, on, number):
        return jnp.where(on, AT[group] + scene.name, 0), jnp.where(on, AT["number,"] + number, 0)

    picks = carried & ways.face & (scene.held < 0)[:, None]
    enters, opens = is_open & ways.enter, toggles & ways.face
    through, opened = listed("through", enters, scene.number), listed("toggle and go through", opens, scene.number)
    doors = _interleave(through[0] + opened[0], through[1] + opened[1])
    only = lambda group, on: jnp.where(on, AT[group], 0)  # noqa: E731
    return _row(
        jnp.full(len(doors), AT["actions"]),
        only("move", scene.barrier != 1),
        _interleave(*listed("pickup", picks, ways.count)),
        only("drop", _can_drop(scene)),
        doors[:, :2],
        only("toggle", (_ahead(scene) & toggles)[:, 0]),
        doors[:, 2:],
        _interleave(*listed("go to", ways.face, ways.count)),
        jnp.full(len(doors), AT["check"]),
    )


def _refusal(scene: Scene, ways: Ways, verb, name, number) -> jax.Array:
    """Pieces of why an action cannot be taken; of those that can, of no use."""
    named = (scene.name >= 0) & (scene.name == name[:, None])
    _, is_open, closed, locked = (named & kind for kind in _kinds(scene.name))
    chosen = named & (scene.number == number[:, None])  # at most one: the number-th of that name
    of_chosen = lambda mask: (chosen & mask).any(1)  # noqa: E731
    # An object without a path takes the number after those before it; of two the nearer one keeps it.
    beyond = (named & ~ways.face & (ways.count == number[:, None] - 1)).any(1)
    toggles = of_chosen(_toggles(scene))
    has_key = (scene.held >= 0) & (scene.held < 6)
    picks, goes, through, toggle = (verb == one for one in (say.PICK_UP, say.GO_TO, say.GO_THROUGH, say.TOGGLE_THROUGH))
    no_path = (picks & beyond & (scene.held < 0)) | (goes & beyond)
    no_path |= (through & of_chosen(is_open)) | (toggle & toggles)
    is_closed, is_locked = through & of_chosen(closed), toggle & of_chosen(locked) & ~toggles
    of_object = no_path | is_closed | is_locked
    alone = jnp.select(
        [verb == say.SILENCE, verb == say.MOVE, verb == say.DROP],
        [AT["no change"], AT["barrier"], jnp.where(scene.held < 0, AT["nothing to drop"], AT["no room to drop"])],
        AT["unknown"],
    )
    counts = _counts(scene, chosen)
    in_full = no_path & toggle  # where AgentBoard prints all its counts of doors in place of the number
    why = jnp.select(
        [no_path, is_closed, is_locked & ~has_key], [AT["no path"], AT["closed"], AT["no key"]], AT["other key"]
    )
    return _row(
        jnp.where(of_object, AT["cannot"] + verb - say.PICK_UP, alone),
        jnp.where(of_object, AT["name"] + name, 0),
        jnp.where(of_object & ~in_full, AT["number"] + number, 0),
        jnp.where(in_full[:, None], counts, 0),
        jnp.where(of_object, why, 0),
    )


def _counts(scene: Scene, chosen: jax.Array) -> jax.Array:
    """Pieces of a Python dictionary: how many doors of each name are in the list up to the chosen one."""
    is_door = scene.name >= engine.CARRIED
    up_to = jnp.cumsum(chosen[:, ::-1], 1)[:, ::-1] > 0
    counted = is_door & up_to
    new = counted & (scene.number == 1)
    total = (jnp.swapaxes(scene.same, 1, 2) & counted[:, None]).sum(2)
    rank = jnp.cumsum(new, 1)
    door = jnp.where(rank == 1, AT["{door"], AT[", door"]) + scene.name
    last = rank == rank[:, -1:]
    return _interleave(
        jnp.where(new, door, 0), jnp.where(new, jnp.where(last, AT["number}"], AT["number,"]) + total, 0)
    )
