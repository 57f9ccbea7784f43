"""Results for people: tables on the terminal and plots in files."""
