"""Which runs one compiled program can train together."""

from __future__ import annotations

from collections.abc import Sequence

from p2p_jax.config import Config, flatten
from p2p_jax.losses import RECONSTRUCTION

# Losses that are no part of the program where their weight is 0.
_LEFT_OUT = (*(f"loss.{name}" for name in RECONSTRUCTION), "loss.feature_matching")
_WEIGHTS = (*_LEFT_OUT, "loss.disc", "loss.gan", "loss.gradient_penalty")
_BUILT_IN = tuple(f"optim.{net}.{name}" for net in ("gen", "disc") for name in ("b1", "b2", "eps"))
VARIED = "seed, rates and schedules (optim.*, without b1, b2 and eps) and weights of losses"


def varies(key: str) -> bool:
    """Whether runs that are trained together may differ in a key."""
    if key.startswith("optim."):
        return key not in _BUILT_IN
    return key == "seed" or key in _WEIGHTS


def problems(configs: Sequence[Config]) -> list[str]:
    """Why configs cannot be trained together; none where they can."""
    flats, found = [flatten(config) for config in configs], []
    for key in flats[0]:
        values = list({repr(flat[key]): flat[key] for flat in flats}.values())
        if len(values) > 1 and not varies(key):
            shown = ", ".join(map(repr, values))
            found.append(
                f"{key}: differs ({shown}), and runs that are trained together share one program; "
                f"they may differ in {VARIED}"
            )
        if key in _LEFT_OUT and len({bool(value) for value in values}) > 1:
            found.append(
                f"{key}: is 0 in some and not in others, which makes another program; runs that "
                "are trained together have it in all or none"
            )
    train, spatial = configs[0].train, configs[0].mesh.spatial
    for key, is_set, why in (
        ("train.early_stop", train.early_stop, "runs that are trained together end together"),
        ("train.on_nan", train.on_nan != "stop", "one's may make others' not finite; use stop"),
        ("train.shard_optimizer", train.shard_optimizer, "there is one device"),
        ("mesh.spatial", spatial > 1, "there is one device"),
    ):
        if is_set:
            found.append(f"{key}: {flats[0][key]!r} is for a run by itself, as {why}")
    return found
