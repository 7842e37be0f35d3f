"""What tests share: small models, runs, files and a caller of the commands."""
