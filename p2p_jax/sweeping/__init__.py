"""What `python -m p2p_jax.sweep` is made of."""
