"""The endpoints: from a request to its answer, and what the server says about itself."""
