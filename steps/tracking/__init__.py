"""MLflow: runs, the model registry, and the packaging of a model. The only room that imports mlflow.

It reads files and nothing else: what a training left in its journal can be published at any time, on any
machine that has the files. mlflow takes more than a second to import, so each function does it when called.
"""
