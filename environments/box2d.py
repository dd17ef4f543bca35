"""BipedalWalkerHardcore-v2 on today's Box2D."""

from typing import Any

import gymnasium
import numpy as np

from .contract import check_action


def make_hardcore(make_kwargs: dict[str, Any]) -> gymnasium.Env:
    """BipedalWalkerHardcore-v2: today's walker with the lidar it had then, no limit."""
    import Box2D
    from gymnasium.envs.box2d.bipedal_walker import BipedalWalker

    class FirstReported(Box2D.b2.rayCastCallback):
        """A ray that ends at the first piece of ground reported, in any order."""

        def ReportFixture(
            self, fixture: Any, point: Any, normal: Any, fraction: float
        ) -> float:
            if (fixture.filterData.categoryBits & 1) == 0:
                return 1  # no ground: the ray continues, unclipped; v3 returns -1
            self.p2 = point
            self.fraction = fraction
            return 0  # ends the ray; v3 returns the fraction and finds the closest

    class OldBipedalWalker(BipedalWalker):
        def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict]:
            check_action(self.action_space, action)
            # The reset makes today's rays and then takes the first step itself.
            if not isinstance(self.lidar[0], FirstReported):
                self.lidar = [FirstReported() for _ in self.lidar]
            return super().step(action)

    return OldBipedalWalker(hardcore=True, **make_kwargs)
