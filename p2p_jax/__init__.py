"""Paired image-to-image translation (pix2pix) in JAX and Flax.

Run it with ``python -m p2p_jax.main``. As a library: networks are in `p2p_jax.models`, the training
step in `p2p_jax.step`, and `p2p_jax.build` turns a config into all that a run needs. Importing this
package imports nothing else. `load` makes a trained run a function of pictures:

    import p2p_jax
    translate = p2p_jax.load("runs/facades")
    pictures = translate(images)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2p_jax.translator import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: the command line must be quick, and hear signals early.
    if name == "load":
        from p2p_jax.translator import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
