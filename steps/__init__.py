"""The pipeline's steps (verbs) and the rooms they share (nouns). See docs/architecture.md."""
