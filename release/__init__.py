"""From a commit to what is given away: `make release` and `make audit`. CONTRIBUTING.md says how a release is made."""
