"""Pictures: one type over folders, parquet files, the hub and arrays; one way to decode, one to write."""

from rankwise.data.images.collection import Images, Stack
from rankwise.data.images.decoding import read_image
from rankwise.data.images.writing import write_image

__all__ = ["Images", "Stack", "read_image", "write_image"]
