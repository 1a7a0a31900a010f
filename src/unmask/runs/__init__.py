"""A run on disk: its config, folder, metrics and checkpoints; and many runs side by side."""
