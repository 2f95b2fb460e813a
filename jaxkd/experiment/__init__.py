"""A config becomes a run: networks, data and optimiser are built, trained and evaluated in a work directory."""
