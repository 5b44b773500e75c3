"""Fine-tuning: rows -> micro-batches, packed rows, models on several devices, checkpoints."""
