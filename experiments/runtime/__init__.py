"""What a run needs around the science: flags, files, checkpoints, reports."""
