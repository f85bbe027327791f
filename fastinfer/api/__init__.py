"""The endpoints: inference, metadata, control, metrics, and the API description."""
