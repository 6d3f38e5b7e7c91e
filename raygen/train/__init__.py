"""Training: what turns defect sets into checkpoints."""
