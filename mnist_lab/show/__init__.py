"""What people look at: data, runs and their networks. It reads results, checkpoints and images and never trains."""
