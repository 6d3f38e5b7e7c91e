"""raygen: learn industrial defects from a few photographs and put them on many, on Ray."""

__version__ = "0.3.0"
