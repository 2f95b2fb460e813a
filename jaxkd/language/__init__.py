"""Sentences, keywords and language models for decoding text from EEG; functions of strings and NumPy arrays."""
