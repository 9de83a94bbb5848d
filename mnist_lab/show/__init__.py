"""What people look at: data, runs and their networks. Reads results, checkpoints and images, and never trains."""
