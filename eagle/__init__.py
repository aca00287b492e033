"""EAGLE-3 speculative decoding on stock ``transformers`` models."""

__version__ = "0.1.0"
