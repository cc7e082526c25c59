"""Training: a method's step, the loop around it, evaluation, checkpoints, logs and the report."""
