"""Decoding, crops and augmentation of single images on the host, and of batches on the device."""
