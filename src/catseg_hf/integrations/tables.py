"""Tables of images into tables of their segmentations: what Ray Data calls for every batch."""

from typing import Any

import pyarrow as pa
import torch

from ..errors import UserError
from ..images.rows import RowOptions, RowSegmenter


SEGMENT = pa.struct([("index", pa.int32()), ("label", pa.string()), ("area", pa.float64()), ("score", pa.float64())])
TYPES = {
    "class_map": pa.binary(),
    "width": pa.int32(),
    "height": pa.int32(),
    "no_class": pa.int32(),
    "segments": pa.list_(SEGMENT),
    "error": pa.string(),
}


class TableSegmenter:
    """
    Segments the images of tables: a class for `map_batches` of a Ray dataset, with `batch_format="pyarrow"`, of which
    every actor loads the model and encodes the labels once.

    Args:
        image_column (`str`): The column of the images: their bytes, their paths, arrays (H, W, 3), or structs with
            `bytes` or `path`. It is left out of the results if it holds pixels or bytes.
        threads (`int`, *optional*): CPU threads of this process; by default torch's own.
        device (`str`, *optional*): Where the model runs; by default an accelerator, if any.
        options: Of [`~images.rows.RowOptions`].

    Raises:
        UserError: If the model cannot be loaded, or an option is not accepted.
    """

    def __init__(
        self, *, image_column: str = "bytes", threads: int | None = None, device: str | None = None, **options: Any
    ):
        if threads is not None:
            torch.set_num_threads(threads)
        self.image_column, self.options = image_column, RowOptions(**options)
        self.segmenter = RowSegmenter(self.options, device)

    def __call__(self, table: pa.Table) -> pa.Table:
        """
        Segments the images of a table.

        Returns:
            `pa.Table` with the other columns, and those that [`~images.rows.RowSegmenter.segment`] names. An image
            that cannot be read is a row with its `error`; so is a row that has an `error` already.

        Raises:
            UserError: If there is no such column, or one that the results would replace, or a column `error` that
                holds no text.
        """
        names = [name for name in table.column_names if name != "error"]
        self.options.check_columns(names, self.image_column)
        images = table.column(self.image_column)
        known = _known_errors(table)
        rows = self.segmenter.segment(
            value.as_py() for value, error in zip(images, known, strict=True) if error is None
        )
        rows = iter(rows)
        empty = dict.fromkeys(self.options.columns)
        rows = [{**empty, "error": error} if error is not None else next(rows) for error in known]
        kept = [name for name in names if name != self.image_column or _is_text(images.type)]
        table = table.select(kept)
        for name in self.options.columns:
            table = table.append_column(name, pa.array([row[name] for row in rows], self._type(name)))
        return table

    def _type(self, name: str) -> pa.DataType:
        if name == "segments" and self.options.class_maps == "coco_rle":
            return pa.list_(pa.struct([*SEGMENT, pa.field("counts", pa.string())]))
        return TYPES[name]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _known_errors(table: pa.Table) -> list[str | None]:
    """What the column `error` says of each row; None where nothing is wrong."""
    if "error" not in table.column_names:
        return [None] * len(table)
    kind = table.schema.field("error").type
    if not (_is_text(kind) or pa.types.is_null(kind)):
        raise UserError(
            f"The dataset has a column 'error' of {kind}, but text is needed, why an image could not be read, or null "
            "where nothing is wrong: rename it (`rename_columns`)."
        )
    return [error or None for error in table.column("error").to_pylist()]
