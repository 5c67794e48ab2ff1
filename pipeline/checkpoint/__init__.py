"""Durable checkpoints: `record` says which exist (no torch), `callback` decides when, `io` knows how."""
