"""YAML files for `--config`."""
