"""A sweep is a study: trials with a number, a folder, a state and a result, all kept on disk from the start."""
