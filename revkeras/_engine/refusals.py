"""Errors that more than one backend raises."""


def untracked(names: list[str]) -> ValueError:
    """Of a block that reads variables which are none of the engine's arguments."""
    return ValueError(
        "A block reads variables that Keras does not track as its own, so no gradient could reach "
        f"them: {names}. Make them weights of the block: create them with `self.add_weight(...)` "
        "in `build()`, or hold the layers that own them in attributes of the block."
    )
