"""dm_control's tasks through shimmy: simulations that diverge."""

import numpy as np
from support_environments import needs_dm_control

from steve.acting.safe_env import SafeEnv
from steve.settings.schema import Environment


@needs_dm_control
def test_physics_that_diverges_loses_a_transition_and_no_environment(capfd):
    lost, failed = [], []
    env = SafeEnv(
        Environment(name="dm_control/cartpole-balance-v0", module="shimmy"),
        "me",
        lambda: lost.append(1),
        lambda: failed.append(1),
    )
    first = env.reset(0)
    action = np.zeros(1)
    assert env.step(action) is not None
    env._env.unwrapped._env.physics.data.qvel[:] = 1e11
    assert env.step(action) is None
    assert (lost, failed) == ([1], [])
    assert "Warning(s) raised: mjWARN_BADQVEL" in capfd.readouterr().out
    np.testing.assert_array_equal(env.reset(0), first)
    assert env.step(action) is not None
