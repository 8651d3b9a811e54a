"""Clusters of real containers: tests, a chaos run, and what collects their logs. CONTRIBUTING.md: what they need."""
