"""Policies that act by denoising action chunks: data, models, training, evaluation and a runtime."""
