"""Stochastic Ensemble Value Expansion (STEVE) in TensorFlow 2."""
