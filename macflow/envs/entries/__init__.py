"""What is registered, one module per family of environments; packages are imported when one is made."""
