"""What `benchmarks.training` compares: one file for each side, and the work that all of them are given."""
