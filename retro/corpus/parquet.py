"""Rows of a .parquet file as records, some hundred of them in memory at once."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from retro.corpus.files import Damaged
from retro.corpus.readings import Reading
from retro.corpus.values import names

ROWS = 256  # in memory at once


def rows(
    path: Path, reading: Reading, text: str, fields: list[str], known: list[str], advance: Callable[[float], None]
) -> Iterator[tuple[int, Any]]:
    """Number, from 1, and record of each row; a row that cannot be read, and a table that can be read no further, is
    `Damaged`.

    `fields` are read, `text` is the one that a table must have. `known` is given the names of the columns, `advance`
    the share of the rows that were read.
    """
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as table:
            have, count = table.schema_arrow.names, table.metadata.num_rows
            known[:] = known or sorted(have)
            wanted = {field if field in have else field.split(".")[0] for field in fields} & set(have)
            _check(text, have, wanted, count)
            for batch in table.iter_batches(batch_size=ROWS, columns=sorted(wanted), use_threads=False):
                for values in zip(*(_cells(column) for column in batch.columns), strict=True):
                    row += 1
                    wrong = any(isinstance(value, UnicodeError) for value in values)
                    record = dict(zip(batch.schema.names, values, strict=True))
                    yield row, Damaged("not valid UTF-8") if wrong else record
                advance(row / count)
    except Damaged as error:
        yield 1, error
    except (pyarrow.ArrowException, OSError) as error:
        reading.failed = getattr(error, "errno", None) is not None
        yield row + 1, Damaged(f"broken .parquet data ({' '.join(str(error).split())})")


def _check(text: str, have: list[str], wanted: set[str], count: int) -> None:
    """Refuse a table that lacks the text, or has a column twice, or no row."""
    if text not in have and text.split(".")[0] not in have:
        raise Damaged(f"no column {text!r}, only {names(set(have))}")
    twice = sorted(column for column in wanted if have.count(column) > 1)
    if twice:
        raise Damaged(f"the column {twice[0]!r} stands there twice; one value would be lost")
    if not count:
        raise Damaged("the file is empty")


def _cells(column: Any) -> list[Any]:
    """Python values of a column; a cell that is not valid UTF-8 is a `UnicodeError`."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_cell(value) for value in column]


def _cell(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return error
