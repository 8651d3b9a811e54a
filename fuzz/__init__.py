"""Coverage-guided fuzzing of everything that reads what others wrote.

    python -m fuzz --help

``targets`` holds one module per parser, ``corpus`` the inputs to begin with, ``found`` those that once failed.
docs/security.md says what has been run.
"""
