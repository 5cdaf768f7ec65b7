"""The boxes of a finished model that one rank of a run begins with: only they are read, whatever the model's size."""

from collections.abc import Mapping
from pathlib import Path

from puna.checkpoint.format import check_fits, check_shapes, read_config, resolve
from puna.checkpoint.pieces import Pieces
from puna.checkpoint.sharded import load_pieces
from puna.checkpoint.tensors import TensorReader
from puna.core.errors import UsageError
from puna.model.config import ModelConfig


def fill_from_model(path: Path | str, config: ModelConfig, targets: Mapping[str, Pieces]) -> None:
    """Fill pieces with the weights of a model, in place. Every rank reads for itself; nothing is exchanged.

    Args:
        path: See `format.resolve`; a folder with safetensors, in one piece or many.
        config: The shape that is expected.
        targets: By Hugging Face's names: `checkpoint.logical`.

    Raises:
        UsageError: It is in Meta's layout, which cannot be read box by box.
        PunaError: The model has another shape, or a file is damaged.
    """
    found = resolve(path)
    if found.layout == "meta":
        raise UsageError(
            f"{path} is in Meta's layout, of which several processes cannot read a part each. Convert it once: "
            f"puna export hf {path} CONVERTED, and set start_from to that folder."
        )
    check_fits(read_config(found.folder), config, where=found.folder)
    with TensorReader.of_folder(found.folder) as reader:
        check_shapes({name: reader.shape(name) for name in reader}, config, where=found.folder)
        layout = reader.layout
    load_pieces(found.folder, layout, targets)
