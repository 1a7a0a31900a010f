"""What a run leaves on the disk: folder, checkpoints, metrics. The loop writes here, the layers above read."""
