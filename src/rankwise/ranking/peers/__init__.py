"""What peers exchange and keep: clicks, logs, counts; a simulated network, and a real one."""
