"""Who runs the steps, and when.

* `stages`: the joint to DVC; runs one stage in a process of its own.
* `lock`: one run at a time in a clone.
* `server`: how Prefect is reached, or started for the time of a run.
* `summary`: what came out, read from the reports.
* `tasks`: the wrapping table, from steps to Prefect tasks.
* `pipeline`: the flow of a run.
* `nightly`: the flow of a night, upon `night` (what it is told as), `causes`, `champions`, `records` and
  `takeover` (runs of dead workers).
* `spread`: the stages of a run over the workers of a pool, upon `sharing` and `merging`.
* `deploy`, `automations`, `notify`, `redaction`: deployments, and messages about what happened.
* `ui`: Prefect's and MLflow's servers and a worker for a clone.

DVC decides whether a stage runs, Prefect when, the step how. Nothing here imports torch.
"""
