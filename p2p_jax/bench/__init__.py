"""What `p2p_jax.benchmark` measures, a module for each thing; it imports what it is asked for."""
