"""Image classifiers trained, tested and logged with one line: Hydra composes, Lightning trains."""

__version__ = "0.1.0"
