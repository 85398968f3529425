"""What a host can do, one module a component; drivers do not import each other."""
