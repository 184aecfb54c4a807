"""Headstart: start from a pretrained network, and prove that it helped."""

__version__ = "0.1.0"
