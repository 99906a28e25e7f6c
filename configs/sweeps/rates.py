"""Learning rates and weights: they are arguments of the compiled step, so no trial recompiles.

    python -m p2p_jax.sweep --config=FILE --space=configs/sweeps/rates.py --workdir=DIR --trials=20

`--pruner=halving` ends most of them early.
"""

from p2p_jax.space import log


def get_space():
    """Keys of the config, and what each may be set to."""
    return {
        "optim.gen.lr": log(2e-5, 2e-3),
        "optim.disc.lr": log(2e-5, 2e-3),
        "loss.l1": log(1.0, 300.0),
    }
