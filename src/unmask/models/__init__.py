"""Hugging Face backbones with a masked head: loading, changing and saving them."""
