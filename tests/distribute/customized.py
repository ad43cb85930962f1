"""Run in every worker: custom steps, metrics, data and models. `python customized.py FOLDER`."""

from tests.distribute.together import strategy  # isort: skip

from tests.distribute import custom_data, custom_logs, custom_models

custom_logs.logs_of_custom_steps()
custom_logs.aggregations()
custom_data.different_data()
custom_models.several_optimizers()
custom_models.foreign_optimizers()
custom_models.starting()
strategy.engine.close()
