"""Paired image-to-image translation (pix2pix) in JAX and Flax.

Run it with ``python -m p2p_jax.main``. As a library: networks are in `p2p_jax.models`, the training
step in `p2p_jax.step`, and `p2p_jax.build` turns a config into all that a run needs. Importing this
package imports nothing else.
"""

__version__ = "0.1.0"
