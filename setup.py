"""Installs what the project needs: pip install -e . (from a checkout; no wheel)."""

from setuptools import setup

ROBOSCHOOL = [
    # The successors of Roboschool's humanoids. Wheels up to Python 3.11.
    "pybullet>=3.2.7,<3.3",
    "pybullet-envs-gymnasium>=0.6,<0.7",
]
DM_CONTROL = ["shimmy[dm-control]>=2.0,<3"]  # dm_control tasks as gymnasium ids

setup(
    name="steve",
    version="1.0.0",
    description="Stochastic Ensemble Value Expansion (NeurIPS 2018) in TensorFlow 2",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    py_modules=[
        "actors",
        "checkpoint",
        "classic_envs",
        "compute",
        "configuration",
        "devices",
        "disk",
        "display",
        "envwrap",
        "episodes",
        "experiment",
        "figures",
        "inspection",
        "learner",
        "main",
        "nn",
        "policy",
        "process",
        "replay",
        "safeenv",
        "schema",
        "status",
        "supervisor",
        "toy_demo",
        "trained",
        "util",
        "valuerl",
        "valuerl_learner",
        "visualizer",
        "worldmodel",
        "worldmodel_learner",
    ],
    install_requires=[
        "tensorflow>=2.21,<2.22",  # the learners
        "gymnasium[mujoco,box2d]>=1.4,<1.5",  # environments
        "mujoco>=3.3.7,<3.5",  # 3.5 changed contact dynamics
        "numpy>=1.26,<3",
        "portalocker>=4,<5",  # locks of replay buffer, scores and folders
        "safetensors>=0.8,<0.9",  # checkpoint container without pickle
        "pydantic>=2.14,<3",  # strict validation of configurations
        "rich>=15,<16",  # the terminal display
        "matplotlib>=3.11,<4",  # figures
        "moviepy>=2.2,<3",  # videos of trained policies
        "pillow>=10.1,<12",  # captions in them
        "tqdm<4.68",  # of moviepy; 4.68 takes our envwrap.py for a package of its own
        "nvidia-ml-py>=13",  # finds GPUs without TensorFlow
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.21,<2.22"],
        "roboschool": ROBOSCHOOL,
        "dm_control": DM_CONTROL,
        "test": ["pytest>=9,<10", "ruff>=0.17,<0.18", *ROBOSCHOOL, *DM_CONTROL],
    },
)
