"""A model and datasets that stand exactly where a user's own do: the pipeline reaches them by class path only."""
