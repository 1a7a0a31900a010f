"""Rows, as Hugging Face data sets, and the stream that deals them."""

from unmask.data.stream import RowStream, check_rows
from unmask.data.sudoku import load_sudoku

__all__ = ["RowStream", "check_rows", "load_sudoku"]
