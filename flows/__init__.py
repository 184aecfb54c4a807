"""Who runs the steps, and when.

* `stages`: the joint to DVC; runs one stage in a process of its own.
* `lock`: one run at a time in a clone.
* `server`: how Prefect is reached, or started for the time of a run.
* `summary`: what came out, read from the reports.
* `tasks`: the wrapping table, from steps to Prefect tasks.
* `pipeline`: the flow.

DVC decides whether a stage runs, Prefect when, the step how. Nothing here imports torch.
"""
