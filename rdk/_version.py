"""The version, in one place; read by setuptools without importing torch, and by rdk itself."""

VERSION = "0.1.0"
