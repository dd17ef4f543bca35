"""Settings that all tests share."""

import os

# Set before any test module imports TensorFlow: its start-up notes bury the results.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
