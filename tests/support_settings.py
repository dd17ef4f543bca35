"""Contents of configuration files."""

SIZES = {"ensemble_size": 4, "train_sample_count": 4, "eval_sample_count": 4}


def updates(*inherits: str, **keys: object) -> dict:
    return {"inherits": [f"{name}.json" for name in inherits], "updates": keys}


def minimal(**keys: object) -> dict:
    return updates(**{"env": {"name": "Hopper-v1"}, **keys})


def with_expansion(model: object = (), **expansion: object) -> dict:
    return minimal(
        model_config=dict(model),
        policy_config={"value_expansion": {"rollout_len": 3, **expansion}},
    )
