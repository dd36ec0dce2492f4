"""Runs: planning, the engines that compute shards, and the order of it all."""
