"""Studies: a declared grid of runs over seeds, trained in order under a budget and compared with error bars."""
