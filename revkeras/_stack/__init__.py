"""The layer that users put in a model: its arguments, its plan, its calls as pure steps."""
