"""Writing images in the kind of file that holds them without loss."""

from __future__ import annotations

import io

import numpy as np

from p2p_jax.storage import AnyPath, write_atomic

_DTYPES = ("uint8", "uint16", "float32")


def save(path: AnyPath, image: np.ndarray) -> None:
    """Writes an image without loss, in one move; the suffix decides the kind.

    Args:
      path: '.png' takes 1 to 4 channels of uint8 or uint16, '.tiff' and '.npy' any number, of
        float32 too.
      image: `[h, w, c]`.

    Raises:
      ValueError: such a file cannot hold it, and what can.
    """
    dtype, suffix = str(image.dtype), path.suffix.lower()
    if image.ndim != 3 or 0 in image.shape or dtype not in _DTYPES:
        raise ValueError(
            f"{path.name}: {list(image.shape)} {dtype} is no image; one is [h, w, c], not empty, "
            f"of {', '.join(_DTYPES)}"
        )
    if suffix not in _ENCODERS:
        raise ValueError(f"{path.name}: images are written as {', '.join(_ENCODERS)}")
    if suffix == ".png" and not _fits_png(image.shape[-1], dtype):
        raise ValueError(
            f"{path.name}: a .png holds 1 to 4 channels of uint8 or uint16, not "
            f"{image.shape[-1]} of {dtype}; .tiff and .npy do"
        )
    write_atomic(path, _ENCODERS[suffix](np.ascontiguousarray(image)), durable=False)


def as_shown(image: np.ndarray) -> np.ndarray:
    """What people can look at of `[..., c]`: the same in grey `[..., 1]` or RGB `[..., 3]`.

    Of 2 channels that is the first, of 4 or more the first three.
    """
    return image[..., : 1 if image.shape[-1] < 3 else 3]


def _fits_png(channels: int, dtype: str) -> bool:
    return 1 <= channels <= 4 and dtype in ("uint8", "uint16")


def _png(image: np.ndarray) -> bytes:
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    if image.dtype == np.uint16:  # of colours in 16 bits Pillow knows nothing
        import imagecodecs

        return bytes(imagecodecs.png_encode(pixels))
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _tiff(image: np.ndarray) -> bytes:
    """One page, the channels side by side as samples; of more than three no meaning is claimed."""
    import tifffile

    channels, out = image.shape[-1], io.BytesIO()
    colours, several = (3 if channels in (3, 4) else 1), channels > 1
    tifffile.imwrite(
        out,
        image if several else image[..., 0],
        photometric="rgb" if colours == 3 else "minisblack",
        planarconfig="contig" if several else None,
        extrasamples=[0] * (channels - colours) if several else None,
        metadata={"axes": "YXS" if several else "YX"},
        compression="zlib",
    )
    return out.getvalue()


def _npy(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, image)
    return out.getvalue()


_ENCODERS = {".png": _png, ".tiff": _tiff, ".npy": _npy}
