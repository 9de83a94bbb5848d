"""A sweep is a study: trials with a number, a folder, a state and a result, on disk from the first moment on."""
