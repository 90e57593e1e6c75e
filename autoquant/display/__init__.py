"""Tables and plots of records, for the terminal, notebooks and model cards."""
