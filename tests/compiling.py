"""Compiling a model in such a way that its training step is traced only once."""


def compiled(model, optimizer, loss="mse", **options):
    """Compiles a built model and builds its optimizer, and returns the model.

    Keras builds an optimizer in the first step, and TensorFlow traces a step twice if its first
    trace makes variables.
    """
    model.compile(optimizer, loss, **options)
    model.optimizer.build(model.trainable_variables)
    return model
