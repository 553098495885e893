"""The weights of a net as a safetensors file, whose meaning a manifest beside it tells."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from macflow.types import DataError


def save_weights(file: Path, net: nn.Module) -> None:
    """Write the weights of `net`."""
    save_file({key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}, file)


def load_weights(file: Path, net: nn.Module) -> None:
    """Give `net` the weights that `save_weights` wrote, and freeze it.

    Raises:
        DataError: naming the file where it is missing, malformed, or of another net.
    """
    try:
        net.load_state_dict(load_file(file))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: not a readable safetensors file: {error}") from None
    except RuntimeError as error:
        raise DataError(f"{file}: weights do not fit the manifest beside them: {error}") from None
    net.requires_grad_(False)
