"""Pieces that the commands share: argument parsing, networks from arguments, console output."""
