"""The language-model door: load a model, choose what is trained, score a task with forward passes, fine-tune."""
