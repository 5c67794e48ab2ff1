"""Sweeps: many trainings of one configuration with other values, each an ordinary run in one folder.

`space` says which values, `folder` keeps what is known of each trial, `study` asks Optuna, `preview` has fit check the
flags before anything is launched, `pool` runs stages beside each other, `trials` brings them to their ends, `ranking`
shows them. Imports neither torch nor Lightning.
"""
