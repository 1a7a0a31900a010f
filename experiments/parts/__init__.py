"""Data, models and maskings of the experiments that are no part of the library."""
