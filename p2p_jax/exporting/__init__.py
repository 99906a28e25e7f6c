"""What `p2p_jax.export` is made of: the function that is exported, and the formats it goes into."""
