"""Configuration: the server's options, and a model's in TOML, protobuf text and JSON."""
