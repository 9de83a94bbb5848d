"""Pages, pictures and predictions of data, runs and networks. This package reads results and never trains."""
