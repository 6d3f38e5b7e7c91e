"""The nightly refresh: what changed in a pool, generated, audited and published to a table."""
