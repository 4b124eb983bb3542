"""Tracing: run the model once on shapes while labels travel with its tensors."""
