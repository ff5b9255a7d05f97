"""What people look at: terminal tables, plots, and one self-contained HTML page."""
