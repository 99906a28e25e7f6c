"""The weight of L1, and the batch size: none, little and the paper's 100, each with 1, 4 and 16.

    python -m p2p_jax.sweep --config=configs/facades.py --space=configs/sweeps/facades.py
        --workdir=runs/facades_sweep --sampler=grid

Nine trials. The paper compares weights of 0 and 100 in its section 4.1.
"""

from p2p_jax.space import choice


def get_space():
    """Keys of the config, and what each may be set to."""
    return {
        "loss.l1": choice(0.0, 10.0, 100.0),
        "train.batch_size": choice(1, 4, 16),
    }
