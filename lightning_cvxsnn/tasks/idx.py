"""The IDX format of the MNIST files."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

_UNSIGNED_BYTES = 8


def read_idx(folder: Path, name: str) -> Tensor:
    """Read an IDX file of unsigned bytes, plain (``name``) or compressed (``name.gz``).

    Args:
        folder: Where it is.
        name: Its name, such as ``t10k-images-idx3-ubyte``.

    Returns:
        uint8 of the shape that the file states.

    Raises:
        MisconfigurationException: If there is no such file, or it is not an IDX file of unsigned bytes.
    """
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        held = sorted(p.name for p in folder.iterdir())[:10] if folder.is_dir() else "no such folder"
        raise MisconfigurationException(
            f"Found neither {name} nor {name}.gz in '{folder}' ({held}). Expected MNIST's IDX files there."
        )
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise MisconfigurationException(f"'{path}' is not a whole gzip file: {error}. Fetch it again.") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UNSIGNED_BYTES:
        raise MisconfigurationException(
            f"'{path}' begins with the bytes {data[:4].hex(' ')}. Expected 00 00 08 and the number of dimensions: an "
            "IDX file of unsigned bytes."
        )
    rank = data[3]
    header = 4 + 4 * rank
    shape = struct.unpack(f">{rank}I", data[4:header]) if len(data) >= header else ()
    if len(shape) != rank or len(data) - header != math.prod(shape):
        raise MisconfigurationException(
            f"'{path}' holds {len(data)} bytes. Expected {header} of header and {math.prod(shape)} of values for shape "
            f"{list(shape)}; fetch it again."
        )
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=header).copy()).reshape(shape)
