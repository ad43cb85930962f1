"""What sharded training does by TensorFlow's own API."""
