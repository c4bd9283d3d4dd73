"""Fine-tune language models with forward passes: load, choose the trained tensors, score a task, train, replay."""
