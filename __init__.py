"""Stochastic Ensemble Value Expansion (STEVE) in TensorFlow 2."""

__version__ = "1.1.0.dev0"
