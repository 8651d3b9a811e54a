"""Clusters of real containers: tests, a chaos run, and what collects their logs. CONTRIBUTING.md says what they need."""
