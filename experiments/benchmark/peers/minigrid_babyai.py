"""Times minigrid's BabyAI levels in primitive actions: python minigrid_babyai.py, with minigrid 3.2.0; see walks.py.

A game is [minigrid's id, seed]. A state is [CRC of the image, agent's place and direction, reward, terminated,
truncated].
"""

import zlib

import gymnasium
import minigrid  # noqa: F401
import numpy as np
from walks import replay


def made(name, seed):
    """A level of minigrid, reset."""
    level = gymnasium.make(name, disable_env_checker=True).unwrapped
    level.reset(seed=seed)
    return level


def begin(game):
    name, seed = game
    level = made(name, seed)
    seen, _ = level.reset(seed=seed)
    return level, (seen, 0.0, False, False)


def step(level, action):
    return level.step(action)


def look(level, said):
    seen, reward, terminated, truncated, *_ = said
    where = [*map(int, level.agent_pos), int(level.agent_dir)]
    image = np.ascontiguousarray(seen["image"], np.uint8)
    return [zlib.crc32(image.tobytes()), *where, round(float(reward), 6), bool(terminated), bool(truncated)]


if __name__ == "__main__":
    replay(begin, step, look)
