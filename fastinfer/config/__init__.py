"""Configuration: the server's options, and a model's configuration in TOML, protobuf text and JSON."""
