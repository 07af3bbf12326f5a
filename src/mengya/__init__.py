"""Mengya 萌芽: grow a small Chinese chat model from nothing."""

__version__ = "0.1.0"
