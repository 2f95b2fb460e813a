"""Figures, tables and pages from the results of runs and analyses; reads results, never a model."""
