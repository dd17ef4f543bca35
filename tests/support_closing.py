"""An environment whose close() a test sees; in child processes, too.

Named in `env.module`. Each environment writes a line to a file when it is closed.
"""

import multiprocessing
import time
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces

NAME = "Closing-v0"


class ClosingEnv(gymnasium.Env):
    """Observes two zeros, without an end.

    Args:
        path: of the file.
        closing: "well", "raises", or "hangs": what close() does after its line.
        made: environments that can be made while the file `path`.made has fewer lines.
        stepping: "well", "raises", or "with a process": it starts one when it is made.
    """

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, path, closing="well", made=100, stepping="well"):
        count = Path(f"{path}.made")
        if count.exists() and len(count.read_text()) >= made:
            raise ValueError("no more can be made")
        with open(count, "a") as file:
            file.write("x")
        self.path = path
        self.closing = closing
        self.stepping = stepping
        if stepping == "with a process":
            process = multiprocessing.Process(target=bool)
            process.start()
            process.join()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        if self.stepping == "raises":
            raise ValueError("no step can be done")
        return np.zeros(2, np.float32), 1.0, False, False, {}

    def close(self):
        with open(self.path, "a") as file:
            file.write("closed\n")
        if self.closing == "raises":
            raise ValueError("no viewer")
        while self.closing == "hangs":
            time.sleep(0.01)


gymnasium.register(NAME, entry_point=ClosingEnv)


def closing_env(folder: Path, **keys) -> dict:
    """The section `env` for it."""
    kwargs = {"path": str(folder / "closed"), **keys}
    return {"name": NAME, "module": "support_closing", "make_kwargs": kwargs}


def times_closed(folder: Path) -> int:
    path = folder / "closed"
    return path.read_text().count("closed\n") if path.exists() else 0
