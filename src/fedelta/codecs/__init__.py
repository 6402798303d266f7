"""Codecs, which write tensors as bytes, and the format of a payload."""
