"""fastinfer serves ONNX models over the KServe v2 REST protocol."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fastinfer")
except PackageNotFoundError:  # a source tree that was built in place and never installed
    __version__ = "0+source"
