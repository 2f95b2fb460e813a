"""EEG to text: data, training and scores of word-level EEG that is aligned with keywords."""
