-- PostgreSQL runs this once, when its volume is new: one database for each server.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_auth;
