"""The walker with the lidar that it had."""

import numpy as np
import pytest
from support_environments import made


def ground_hits(walker, ray: int) -> list[float]:
    """Fractions at which a ray meets pieces of ground, in the order of the reports."""
    import Box2D

    class Everything(Box2D.b2.rayCastCallback):
        def ReportFixture(self, fixture, point, normal, fraction):
            if fixture.filterData.categoryBits & 1:
                hits.append(fraction)
            return 1

    hits: list[float] = []
    everything = Everything()
    angle, length = 1.5 * ray / 10.0, 160 / 30.0
    start = walker.hull.position
    end = start + length * Box2D.b2Vec2(np.sin(angle), -np.cos(angle))
    walker.world.RayCast(everything, start, end)
    return hits


def test_v2s_rays_end_at_the_first_ground_reported_and_v3s_at_the_closest():
    envs = [made(f"BipedalWalkerHardcore-v{version}") for version in (2, 3)]
    lidars = [env.reset(seed=4)[0][14:] for env in envs]
    rng = np.random.default_rng(0)
    differing = []
    for _ in range(200):
        for env, lidar in zip(envs, lidars, strict=True):
            choose = min if env is envs[1] else lambda hits: hits[0]
            for ray in range(10):
                hits = ground_hits(env.unwrapped, ray)
                expected = choose(hits) if hits else 1.0
                assert lidar[ray] == pytest.approx(expected, abs=1e-5)
        differing.append(np.any(lidars[0] != lidars[1]))
        action = rng.uniform(-1, 1, 4)
        stepped = [env.step(action) for env in envs]
        np.testing.assert_array_equal(stepped[0][0][:14], stepped[1][0][:14])
        assert stepped[0][1:3] == stepped[1][1:3]
        lidars = [step[0][14:] for step in stepped]
        if stepped[0][2]:
            lidars = [env.reset(seed=5)[0][14:] for env in envs]
    assert 0.1 < np.mean(differing) < 0.9
