"""What every room shares (errors, the terminal, artifacts) and the front door, `sodeploy` (see __main__.py)."""
